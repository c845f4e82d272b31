"""A real vLLM against the Hugging Face engine and against plain forward passes over every item of a small catalogue."""

import json
import os
import shutil
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch
from lcrec_form import GAPS, import_checkpoint, make_run
from transformers import GenerationConfig

from distill import export_soft_labels as export
from distill.data.dataset import PAD, Dataset, write_dataset
from distill.labels.labeller import LabelRequest
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs, write_codes
from distill.teachers.language_model import EngineLabeller
from teacher.base_model import from_scratch
from teacher.config import StreamSettings
from teacher.engines.hf import HFEngine
from teacher.engines.vllm import VLLMEngine
from teacher.engines.vllm_start import take_devices
from teacher.tasks import TaskData
from teacher.tokenizer import add_codewords, train_tokenizer

pytestmark = pytest.mark.vllm

N_ITEMS, LEVELS, SIZE = 240, 3, 200  # more codewords than one request may ask about
MAX_HISTORY, MAX_TOKENS = 20, 160  # a title of three tokens: 1 + 20 * (3 + 4) + 3 tokens
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "initializer_range": 0.3,
}  # fmt: skip
TWINS = (7, 8)  # two codewords of the last level that the teacher cannot tell apart
FORMS = {"stream": (0, 0), "seqrec": (0, 0), "titles": (3, 0), "last titles": (3, 2)}  # titles' tokens, items with them
STREAMS = ("stream", "titles", "last titles")


@dataclass(frozen=True)
class Nothing:
    """No settings."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    names = [f"i{number}" for number in range(N_ITEMS)]
    sequences = [rng.integers(0, N_ITEMS, length) for length in (3, 24, 5, 8)]
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        items = pa.table({"item_id": names, "title": [f"thing {name}" for name in names]})
        write_dataset(folder, items, [f"u{number}" for number in range(len(sequences))], sequences)
    codes = rng.integers(0, (SIZE, 3, 12), (N_ITEMS, LEVELS))
    codes[:160, 0] = np.arange(160)  # the root has two requests' worth of children
    codes[160:200] = [3, 1, 0]
    codes[160:200, 2] = np.arange(40)  # one node with many, the twins among them
    codes[201] = codes[200]  # two items behind one ID
    with ArtifactJob("semantic_ids", Nothing(), root / "semantic_ids").write() as folder:
        write_codes(folder, names, codes)
        write_json(folder / "report.json", {"codebook_size": SIZE})
    return Dataset.load(root / "dataset"), SemanticIDs.load(root / "semantic_ids", N_ITEMS)


@pytest.fixture(scope="module")
def checkpoint(shop, tmp_path_factory):
    """A tiny random LLaMA whose generation config asks to sample."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(shop[0].texts(), 300)
    add_codewords(tokenizer, shop[1])
    model = from_scratch(tokenizer, SIZES, MAX_TOKENS).eval()
    first, second = TaskData(*shop, tokenizer, MAX_HISTORY, MAX_TOKENS).token_of[2, list(TWINS)]
    rows = model.get_input_embeddings().weight.data
    rows[second] = rows[first]
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.2, top_k=2, repetition_penalty=1.9)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = {"prompt": "stream", "max_history": MAX_HISTORY, "max_tokens": MAX_TOKENS}
    write_json(folder / "teacher.json", facts)
    return folder


@pytest.fixture(scope="module")
def engine(shop, checkpoint):
    """One vLLM for all tests."""
    engine = VLLMEngine.load(checkpoint, *shop, max_num_seqs=64)
    yield engine
    engine.close()


def ask_as(form, shop, checkpoint, engine, monkeypatch):
    """vLLM and the plain engine on one checkpoint, asked in one form."""
    prompt, plain = "seqrec" if form == "seqrec" else "stream", HFEngine.load(checkpoint, *shop)
    data = TaskData(*shop, engine.data.tokenizer, MAX_HISTORY, MAX_TOKENS, stream=StreamSettings(*FORMS[form]))
    for name, value in (("prompt", prompt), ("data", data)):
        monkeypatch.setattr(engine, name, value)
        setattr(plain, name, value)
    return engine, plain


@pytest.fixture(params=FORMS)
def pair(request, shop, checkpoint, engine, monkeypatch):
    """vLLM and the plain engine, asked in each form."""
    return ask_as(request.param, shop, checkpoint, engine, monkeypatch)


@pytest.fixture(params=STREAMS)
def stream_pair(request, shop, checkpoint, engine, monkeypatch):
    """vLLM and the plain engine, asked by streams."""
    return ask_as(request.param, shop, checkpoint, engine, monkeypatch)


def histories(*lengths):
    rng = np.random.default_rng(1)
    rows = np.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = rng.integers(0, N_ITEMS, length)
    return rows


HISTORIES = histories(4, 1, 20, 11)


@torch.no_grad()
def brute_force(plain, history, items):
    """Log-probabilities of the whole vocabulary at every item's positions, from whole sequences [items, levels, V]."""
    tokens, lengths = plain.prompts(history[None])
    prompt = tokens[0, : lengths[0]].expand(len(items), -1)
    forced = torch.from_numpy(plain.data.item_tokens[items])
    logits = plain.model(torch.cat([prompt, forced], dim=1)).logits
    return logits[:, lengths[0] - 1 : -1].log_softmax(-1)


def scores_of_all(plain, history):
    """log P(v|S) of every item."""
    items = np.arange(N_ITEMS)
    logs = brute_force(plain, history, items)
    return logs.gather(2, torch.from_numpy(plain.data.item_tokens)[..., None])[..., 0].sum(1).numpy()


def same_ranking(found, expected, scores):
    """The same lists, but for neighbours whose scores are one number up to rounding."""
    assert found.shape == expected.shape
    for row in range(len(found)):
        for place in np.flatnonzero(found[row] != expected[row]):
            ties = np.flatnonzero(np.abs(scores[row] - scores[row, place]) < 1e-5)
            assert sorted(found[row, ties]) == sorted(expected[row, ties])
            assert len(ties) > 1


def test_it_is_vllm(engine):
    facts = engine.facts()
    assert facts["engine"] == "vllm" and facts["engine_version"].startswith("0.")
    assert facts["dtype"] == "float32"
    distributions = {"V1": "logprob_token_ids", "V2": "prompt_logprob_token_ids"}
    assert facts["distributions"] == distributions[facts["runner"]]


@pytest.mark.parametrize("exclude_bought", [True, False])
def test_wide_beams_rank_all_items(pair, exclude_bought):
    engine, plain = pair
    rows = HISTORIES[:2]
    items, scores = engine.beams(rows, N_ITEMS, exclude_bought)
    for row, history in enumerate(rows):
        expected = scores_of_all(plain, history)
        left_out = set(history.tolist()) if exclude_bought else set()
        found = [item for item in items[row].tolist() if item >= 0]
        assert sorted(found) == [item for item in range(N_ITEMS) if item not in left_out]
        np.testing.assert_allclose(scores[row, : len(found)], expected[found], atol=1e-4)
        assert (np.diff(expected[found]) < 1e-4).all()
        assert np.ptp(expected) > 1  # a ranking to speak of


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("exclude_bought", [True, False])
def test_beams_are_those_of_the_plain_engine(pair, exclude_bought, constrained):
    engine, plain = pair
    for width in (1, 25) if constrained else (7,):
        expected_items, expected = plain.beams(HISTORIES, width, exclude_bought, constrained)
        items, scores = engine.beams(HISTORIES, width, exclude_bought, constrained)
        np.testing.assert_allclose(scores, expected, atol=1e-4)
        same_ranking(items, expected_items, expected)
        if constrained and not exclude_bought:  # else a beam may end before the one item that it led to
            assert (items >= 0).all()


def test_beams_do_not_depend_on_who_else_is_asked(pair, monkeypatch):
    """Ties, a cold or warm cache, one user or many, a small cache: the same lists in the same order."""
    engine, _ = pair
    items, scores = engine.beams(HISTORIES, 40)
    same = items.tolist()
    assert engine.beams(HISTORIES, 40)[0].tolist() == same
    one = [engine.beams(row[None], 40)[0][0].tolist() for row in HISTORIES]
    same_ranking(np.array(one), items, scores)
    monkeypatch.setattr(engine.config.cache_config, "num_gpu_blocks", 100)
    prompts = [[1] * 30] * len(HISTORIES)
    assert engine.chunks(prompts, 40) == [slice(row, row + 1) for row in range(4)]
    same_ranking(engine.beams(HISTORIES, 40)[0], items, scores)


def test_twins_stand_together(pair):
    """Two items that differ in codewords of one meaning: equal scores, next to each other, in one order for ever."""
    engine, _ = pair
    codes = engine.data.ids.codes
    first, second = (next(i for i in range(160, 200) if codes[i, 2] == twin) for twin in TWINS)
    items, scores = engine.beams(HISTORIES, N_ITEMS, exclude_bought=False)
    for row in range(len(HISTORIES)):
        places = [items[row].tolist().index(item) for item in (first, second)]
        assert scores[row, places[0]] == pytest.approx(scores[row, places[1]], abs=1e-5)
        assert abs(places[0] - places[1]) == 1
        shared = [items[row].tolist().index(item) for item in (200, 201)]
        assert shared[1] == shared[0] + 1  # behind one ID: by number


@pytest.mark.parametrize("scope", ["level", "all"])
def test_codeword_logprobs(pair, scope):
    engine, plain = pair
    targets = np.array([0, 239, 175, 200])
    found = engine.codeword_logprobs(HISTORIES, targets, scope)
    token_of = engine.data.token_of
    assert found.dtype == torch.float32
    assert found.shape == (4, LEVELS, SIZE if scope == "level" else LEVELS * SIZE)
    for row, (history, target) in enumerate(zip(HISTORIES, targets, strict=True)):
        expected = brute_force(plain, history, np.array([target]))[0]
        for level in range(LEVELS):
            wanted = token_of[level] if scope == "level" else token_of.ravel()
            np.testing.assert_allclose(found[row, level], expected[level, wanted], atol=1e-4)
    assert (found.exp().sum(-1) < 1).all()  # of the whole vocabulary: the mass outside is known


def test_a_stream_is_all_of_its_prefixes(stream_pair):
    engine, plain = stream_pair
    sequences = histories(5, 1, 3)
    found, expected = engine.stream_logprobs(sequences), plain.stream_logprobs(sequences)
    real = torch.from_numpy(sequences != PAD)
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4)


def test_lists_of_unequal_lengths(engine, shop, checkpoint):
    """In one batch: nothing, one token, one request's fill, more than that; each in the order that was asked."""
    prompts = [[1], [1, 400, 401], [1, 500], [1, 600, 601, 602]]
    rng = np.random.default_rng(2)
    wanted = [rng.permutation(800)[:length] for length in (0, 1, 128, 333)]
    found = engine.next_token_logprobs(prompts, wanted)
    model = HFEngine.load(checkpoint, *shop).model
    for prompt, tokens, logs in zip(prompts, wanted, found, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)[tokens]
        np.testing.assert_allclose(logs, expected, atol=1e-4)


def test_a_user_with_an_empty_history(pair):
    engine, plain = pair
    nobody = np.full((1, 3), PAD)
    items, scores = engine.beams(nobody, 10)
    expected_items, expected = plain.beams(nobody, 10)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    same_ranking(items, expected_items, expected)
    found = engine.codeword_logprobs(nobody, np.array([5]))
    np.testing.assert_allclose(found, plain.codeword_logprobs(nobody, np.array([5])), atol=1e-4)


@pytest.mark.parametrize("scope", ["level", "all"])
def test_exported_labels(engine, shop, checkpoint, scope):
    examples = shop[0].examples("train", MAX_HISTORY).take(slice(0, 25))
    assert examples.positions.max() > MAX_HISTORY  # prefix by prefix there, at once elsewhere
    ask = LabelRequest(width=10, keep=6, scope=scope)
    ours, plain = (
        EngineLabeller(who, shop[0], batch_size=5).label(examples, ask, lambda _: None)
        for who in (engine, HFEngine.load(checkpoint, *shop))
    )
    np.testing.assert_allclose(ours.scores, plain.scores, atol=1e-4)
    np.testing.assert_allclose(ours.log_probs, plain.log_probs, atol=1e-4)
    same_ranking(ours.candidates, plain.candidates, plain.scores)


def test_the_entry_asks_vllm(engine, shop, checkpoint, tmp_path, monkeypatch):
    """Settings reach vLLM, and the label set says who has made it."""
    asked = {}

    def load(*_, **settings):
        asked.update(settings)
        return engine

    with ArtifactJob("teacher", Nothing(), tmp_path / "teacher").write() as folder:
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    monkeypatch.setattr(VLLMEngine, "load", staticmethod(load))
    config = export.Config(
        dataset=shop[0].artifact.folder, semantic_ids=shop[1].artifact.folder, teacher=tmp_path / "teacher",
        output=tmp_path / "labels", engine="vllm", width=5, keep=3, limit=6, tensor_parallel_size=2,
        gpu_memory_utilization=0.5, kv_cache_gb=0.25,
    )  # fmt: skip
    export.main(config)
    assert (asked["tensor_parallel_size"], asked["gpu_memory_utilization"], asked["kv_cache_gb"]) == (2, 0.5, 0.25)
    labeller = json.loads((tmp_path / "labels" / "index.json").read_text())["labeller"]
    assert labeller["engine"] == "vllm" and labeller["prompt"] == "stream"


def test_the_prefix_cache_is_used(engine):
    before = dict(engine.counters)
    engine.beams(HISTORIES[2:3], 20)  # a prompt of 61 tokens: one block of 32 is shared by all beams
    requests, tokens, cached = (engine.counters[name] - before[name] for name in before)
    assert requests > 20 and cached > tokens / 3


@pytest.mark.parametrize(("seen", "mine"), [(None, "2,3"), ("4,5,6,7", "6,7")])
def test_launched_processes_take_gpus_of_their_own(monkeypatch, seen, mine):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen or "")
    take_devices(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == mine


def test_prompts_longer_than_the_window(engine, monkeypatch):
    monkeypatch.setattr(engine, "prompt", "stream")
    too_long = histories(53)  # 160 tokens: no room for an ID
    with pytest.raises(UserError, match="window of 160 tokens"):
        engine.beams(too_long, 5)
    with pytest.raises(UserError, match="histories of 20 items"):
        engine.codeword_logprobs(too_long, np.array([1]))
    just_fits = histories(52)
    assert engine.codeword_logprobs(just_fits, np.array([1])).isfinite().all()


def test_an_engine_that_dies(engine, monkeypatch):
    from vllm.v1.engine.exceptions import EngineDeadError

    def die(*_, **__):
        raise EngineDeadError()

    monkeypatch.setattr(engine.llm, "generate", die)
    with pytest.raises(UserError, match=r"vLLM died after \d+ requests.*run the same command again"):
        engine.beams(HISTORIES, 5)


def altered(checkpoint, folder, **changes):
    """A copy of the checkpoint with another config."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_checkpoints_that_do_not_fit(shop, checkpoint, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_json(adapter / "adapter_config.json", {})
    with pytest.raises(UserError, match="merge it into its base first"):
        VLLMEngine.load(adapter, *shop)
    with pytest.raises(UserError, match="before its vocabulary was extended"):
        VLLMEngine.load(altered(checkpoint, tmp_path / "small", vocab_size=500), *shop)
    with pytest.raises(UserError, match="heads of size 16"):
        VLLMEngine.load(altered(checkpoint, tmp_path / "heads", head_dim=16), *shop)
    other = tmp_path / "words"
    shutil.copytree(checkpoint, other)
    train_tokenizer(["a"], 300).save_pretrained(other)
    with pytest.raises(UserError, match="does not know 600 codewords"):
        VLLMEngine.load(other, *shop)


def test_a_published_lcrec_checkpoint(engine, tmp_path):
    """Gaps among the codewords and a prompt from a file: both engines give the same lists and distributions."""
    folder = import_checkpoint(make_run(tmp_path))
    shop = Dataset.load(tmp_path / "dataset"), SemanticIDs.load(tmp_path / "semantic_ids")
    plain = HFEngine.load(folder, *shop)
    engine.close()  # one vLLM in a process; this is the file's last test
    lcrec = VLLMEngine.load(folder, *shop, max_num_seqs=64)
    rows = np.array([[3, 1, 14, 9], [5, PAD, PAD, PAD], [9, 2, PAD, PAD]])
    for width, constrained in ((16, True), (30, False)):
        items, scores = lcrec.beams(rows, width, constrained=constrained)
        expected_items, expected = plain.beams(rows, width, constrained=constrained)
        np.testing.assert_allclose(scores, expected, atol=1e-4)
        same_ranking(items, expected_items, expected)
    for scope, gaps in (("level", GAPS), ("all", np.tile(GAPS.ravel(), (len(GAPS), 1)))):
        found = lcrec.codeword_logprobs(rows, np.array([0, 7, 12]), scope)
        np.testing.assert_allclose(found, plain.codeword_logprobs(rows, np.array([0, 7, 12]), scope), atol=1e-4)
        assert (np.isneginf(found.numpy()) == gaps).all()
    lcrec.close()
