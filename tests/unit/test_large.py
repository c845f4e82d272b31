"""A student around a Hugging Face causal model: equality with plain passes, LoRA, the command."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from student_shop import ITEMS, LEVELS, SIZE, K, make_shop
from tiny_llms import NETWORKS, SMALL, WORDS, checkpoint
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from distill import losses
from distill.data.dataset import Dataset
from distill.decoding.beam_search import beam_search, score_all
from distill.decoding.trie import FullTree, Trie
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import run
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs
from student import jobs, train, trainer
from student.models import large
from student.models.causal import Positions
from student.recommender import Recommender
from student.train import Config

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = [3, 4, 5, 6, 9, 13, 4, 4, 7, 3, 3, 8]
SETTINGS = Config(
    variant="dwr", backbone="causal", batch_size=4, candidates=K, max_history=4, epochs=1, ranker_epochs=1,
    valid_users=6, width=5, margin=0.3, lr=0.01, ranker_lr=0.01, dropout=0.0, checkpoint_every=0, tracker="none",
    precision="no",  # Accelerate knows one a process
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    make_shop(folder, LENGTHS)
    return folder


@pytest.fixture(scope="module")
def ids(root):
    return SemanticIDs.load(root / "semantic_ids", ITEMS)


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request, tmp_path_factory, ids):
    """The student and the language model that it starts from, in float64."""
    folder = checkpoint(tmp_path_factory.mktemp("base"), NETWORKS[request.param], ids.tokens())
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    return large.load(folder, ids, 20).double(), plain


def histories(lengths, seed=1):
    codes = torch.randint(SIZE, (len(lengths), max(lengths), LEVELS), generator=torch.Generator().manual_seed(seed))
    for row, length in enumerate(lengths):
        codes[row, length:] = -1
    return codes


def some_items(*shape, seed=2):
    return torch.randint(SIZE, (*shape, LEVELS), generator=torch.Generator().manual_seed(seed))


def naive(plain, history, item, scope="level"):
    """Score one candidate after its history by the language model itself [levels, V]."""
    first = len(WORDS) + torch.arange(LEVELS) * SIZE  # the tokenizer's numbers of each level's first codeword
    tokens = torch.cat([torch.tensor([0]), (history + first).flatten(), (item + first)[:-1]])
    logits = plain(input_ids=tokens[None]).logits[0, -LEVELS:]
    if scope == "all":
        return logits[:, len(WORDS) :].log_softmax(-1)
    return torch.stack([logits[level, first[level] :][:SIZE] for level in range(LEVELS)]).log_softmax(-1)


def naive_all(plain, codes, items, scope="level"):
    lengths = (codes[..., 0] >= 0).sum(1)
    return torch.stack(
        [
            torch.stack([naive(plain, codes[row, :length], item, scope) for item in items[row]])
            for row, length in enumerate(lengths.tolist())
        ]
    )


def close(a, b):
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-6, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_layers_of_a_language_model(name, ids, tmp_path):
    folder = checkpoint(tmp_path / "base", NETWORKS[name], ids.tokens())
    plain = AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=1, dtype=torch.float64).eval()
    model, codes, items = large.load(folder, ids, 20, layers=1).double(), histories([3, 2]), some_items(2, 4)
    close(model(codes, items), naive_all(plain, codes, items))
    rebuilt = large.Large(model.config).double()
    rebuilt.load_state_dict(model.state_dict())
    close(rebuilt.eval()(codes, items), naive_all(plain, codes, items))
    with pytest.raises(UserError, match="--init_layers is 3"):
        large.load(folder, ids, 20, layers=3)


@torch.no_grad()
@pytest.mark.parametrize("scope", ["level", "all"])
def test_candidates_beside_one_history_equal_plain_passes(pair, scope):
    model, plain = pair
    codes, items = histories([5, 1, 3]), some_items(3, 6)
    expected = naive_all(plain, codes, items, scope)
    close(model(codes, items, scope), expected)  # in one pass, as in training
    close(model.log_probs(model.encode(codes), items, scope), expected)  # behind cached keys and values


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_ids_of_one_codeword(name, tmp_path):
    """The plain language model's logits after the history, whatever the candidates."""
    ids = SemanticIDs(None, [f"i{item}" for item in range(SIZE)], np.arange(SIZE)[:, None], SIZE)
    folder = checkpoint(tmp_path / "base", NETWORKS[name], ids.tokens())
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    model, codes, items = large.load(folder, ids, 20).double(), histories([5, 2])[..., :1], some_items(2, K)[..., :1]
    expected = []
    for history in (codes[0], codes[1, :2], codes[0, :3], codes[1, :1]):
        tokens = torch.cat([torch.tensor([0]), history.flatten() + len(WORDS)])
        expected.append(plain(input_ids=tokens[None]).logits[0, -1, len(WORDS) :].log_softmax(-1))
    whole, shorter = (torch.stack(rows)[:, None, None].expand(-1, K, -1, -1) for rows in (expected[:2], expected[2:]))
    close(model(codes, items), whole)
    close(model.log_probs(model.encode(codes), items), whole)
    groups = torch.tensor([[3], [1]])
    _, chosen = model(codes, items[:, None], "level", Positions(torch.tensor([0]), torch.tensor([1]), groups))
    close(chosen[:, 0], shorter.gather(-1, items[..., None]).squeeze(-1))


def test_gradients_equal_plain_passes(pair):
    """Gradients of DISTILL and RANK for all weights; of the vocabulary, the codewords' rows."""
    model, plain = pair
    codes, items = histories([5, 1, 3]), some_items(3, 6)
    teacher = torch.randn(3, LEVELS, SIZE, dtype=torch.float64).log_softmax(-1)
    for network, log_probs in ((model, model(codes, items)), (plain, naive_all(plain, codes, items))):
        network.zero_grad()
        loss = losses.distill(log_probs[:, 0], teacher, 1.0, items[:, 0], 0.0).mean()
        loss = loss + losses.rank(losses.sequence_score(log_probs, items, 1.0), 0.3).mean()
        loss.backward()
    trunk = dict(plain.base_model.named_parameters())
    for name, parameter in model.trunk.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
        torch.testing.assert_close(parameter.grad, trunk[name].grad, rtol=1e-4, atol=1e-5)
    tables = [(model.head, plain.get_output_embeddings()), (model.codewords, plain.get_input_embeddings())]
    for codewords, vocabulary in tables if model.codewords is not None else tables[:1]:
        torch.testing.assert_close(
            codewords.grad.flatten(0, 1), vocabulary.weight.grad[len(WORDS) :], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("scope", ["level", "all", "trie"])
def test_one_pass_equals_prefix_by_prefix(pair, scope):
    """The scope "trie": a softmax over the siblings of each candidate's codewords."""
    (model, _), siblings = pair, None
    codes, groups = histories([5, 2, 4]), torch.tensor([[1, 4, 2], [1, -1, -1], [3, 2, -1]])
    rows, places = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([1, 3, 4, 1, 2, 3])
    items = some_items(3, 3, K)
    if scope == "trie":
        scope, siblings = "level", torch.zeros(3, 3, K, LEVELS, SIZE).scatter(-1, items[..., None], 1).bool()
        siblings[..., :2] = siblings[:, :, :, :1, :] = True
    target_log_probs, chosen = model(codes, items, scope, Positions(rows, places, groups, siblings))
    assert model(codes, None, scope, Positions(rows, places))[1] is None
    alone = [model(codes[r, None, :p], codes[r, None, None, p], scope)[0, 0] for r, p in zip(rows, places, strict=True)]
    close(target_log_probs, torch.stack(alone))
    for row, group in (groups >= 0).nonzero().tolist():
        log_probs = model(codes[row, None, : groups[row, group]], items[row, None, group], scope)[0]
        if siblings is not None:
            log_probs = log_probs.masked_fill(~siblings[row, group], -torch.inf).log_softmax(-1)
        numbers = items[row, group] + (torch.arange(LEVELS) * SIZE if scope == "all" else 0)
        close(chosen[row, group], log_probs.gather(-1, numbers[..., None]).squeeze(-1))


@torch.no_grad()
def test_beams_equal_teacher_forcing(pair):
    """One encoded history serves several searches."""
    model, _ = pair
    encoded = model.encode(histories([4, 1, 3]))
    for width in (4, 12):
        beams = beam_search(model.step(encoded), FullTree(LEVELS, SIZE), 3, width)
        log_probs = model.log_probs(encoded, beams.codes)
        close(beams.scores, log_probs.gather(-1, beams.codes[..., None]).squeeze(-1).sum(-1))
    codes = torch.unique(some_items(30), dim=0)
    tree = Trie.build(codes.numpy(), SIZE)
    scores = score_all(model.step(encoded), tree, 3)[:, tree.leaf_of_item]
    log_probs = model.log_probs(encoded, codes.expand(3, -1, -1))
    close(scores, log_probs.gather(-1, codes.expand(3, -1, -1)[..., None]).squeeze(-1).sum(-1))


def kept(model, history, candidates):
    """Count the bytes that autograd keeps of a pass, without weights."""
    weights, sizes = {value.untyped_storage().data_ptr() for value in model.parameters()}, {}

    def pack(value):
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes(), value  # held, so that its address is not used again
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        log_probs = model(history, candidates)
    assert log_probs.requires_grad
    return sum(size for size, _ in sizes.values())


def test_memory_grows_by_the_candidates_alone(pair):
    """Whatever the history's length; with a history for each candidate, each costs a history more."""
    model, _ = pair
    shared, repeated = {}, {}
    for items in (1, 16):
        codes = histories([items])
        sizes = [kept(model, codes, some_items(1, k)) for k in (4, 8)]
        shared[items] = sizes[1] - sizes[0]
        sizes = [kept(model, codes.repeat(k, 1, 1), some_items(k, 1)) for k in (4, 8)]
        repeated[items] = sizes[1] - sizes[0]
    assert shared[16] < 1.3 * shared[1]  # the attention mask is as wide as all tokens
    assert repeated[16] > 5 * shared[16]


def test_lora_trains_adapters_and_codewords_alone(tmp_path, ids):
    folder = checkpoint(tmp_path / "base", NETWORKS["llama"], ids.tokens())
    model = large.load(folder, ids, 4, lora_rank=2, checkpointing=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in before if "lora_" in name or name in ("head", "codewords")}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 0.5)
    codes, items = histories([3, 2]), some_items(2, 3)
    for _ in range(2):  # B of an adapter starts at zero, so A has no gradient in the first step
        optimizer.zero_grad()
        model(codes, items)[..., 0].sum().backward()
        optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == trained
    with torch.no_grad():
        model.eval()
        merged = model.merged()
        assert not [name for name in merged.state_dict() if "lora_" in name] and merged.config.lora_rank == 0
        close(merged(codes, items), model(codes, items))


def test_checkpointing_keeps_less_and_changes_no_gradient(tmp_path, ids):
    folder = checkpoint(tmp_path / "base", NETWORKS["gpt_neox"], ids.tokens())
    found, sizes = [], []
    for checkpointing in (False, True):
        model = large.load(folder, ids, 4, checkpointing=checkpointing).train()
        sizes.append(kept(model, histories([3, 2]), some_items(2, 3)))
        model(histories([3, 2]), some_items(2, 3))[..., 0].sum().backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert sizes[1] < sizes[0] / 2
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-5)


def test_a_base_without_codewords_gets_new_rows(tmp_path, ids):
    folder = checkpoint(tmp_path / "base", NETWORKS["llama"], [])
    model, plain = large.load(folder, ids, 4), AutoModelForCausalLM.from_pretrained(folder)
    tables = [(model.head, plain.get_output_embeddings()), (model.codewords, plain.get_input_embeddings())]
    for codewords, table in tables:
        rows = codewords.detach().flatten(0, 1)
        assert len(torch.unique(rows, dim=0)) == LEVELS * SIZE
        near = (rows - table.weight.mean(0)).std(0) / table.weight.std(0)
        assert 0.05 < near.mean() < 0.15
    close(model.start, plain.get_input_embeddings().weight[0])


@pytest.mark.parametrize(("variant", "lora"), [("dwr", 0), ("dwr", 2), ("dtr", 2)])
def test_trained_saved_loaded_recommends(root, tmp_path, ids, monkeypatch, variant, lora):
    """The file holds what was validated, without adapters."""
    folder = checkpoint(tmp_path / "base", NETWORKS["llama"], ids.tokens())
    seen, copies, validate = [], [], trainer.validate
    monkeypatch.setattr(trainer, "validate", lambda *args: seen.append(validate(*args)) or seen[-1])
    monkeypatch.setattr(trainer, "copy_whole", lambda *_: copies.append(1))
    config = dataclasses.replace(SETTINGS, run=root, init=folder, lora_rank=lora, variant=variant)
    train.main(dataclasses.replace(config, output=tmp_path / "student"))
    assert not copies  # of a model that may be too large for two
    student = Recommender.from_pretrained(tmp_path / "student")
    assert not [name for name in student.model.state_dict() if "lora_" in name]
    assert student.facts["backbone"] == "large" and (student.ranker is not None) == (variant == "dtr")
    curves = json.loads((tmp_path / "student/curve.json").read_text())
    for curve in curves.values():
        assert all(np.isfinite(row["loss"]) for row in curve)
    valid = Dataset.load(root / "dataset").examples("valid", 4)
    valid = valid.take(np.random.default_rng(0).permutation(len(valid))[:6])
    lists, _ = student.rank_items(valid.histories, 5, student.facts["exclude_bought"])
    assert abs(trainer.ndcg(trainer.hit_ranks(lists, valid.targets), 10).mean() - max(seen[-2:])) < 1e-6
    assert len(student.recommend([["i1", "i2"], ["i3"]], k=3)[1]) == 3


@pytest.fixture
def new_accelerate():
    """Let Accelerate forget the precision of this process, before and after the test."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_goes_on_where_it_was_broken_off(precision, root, tmp_path, ids, new_accelerate):
    """In the ranker's phase, beside a retriever that lies on the disk by its adapters alone.

    In bf16 an unbroken run must train the ranker in it too, though it is cloned from a model that was prepared before.
    """
    folder = checkpoint(tmp_path / "base", NETWORKS["llama"], ids.tokens())
    config = dataclasses.replace(SETTINGS, run=root, init=folder, lora_rank=2, variant="dtr", checkpoint_every=2)
    config = dataclasses.replace(config, precision=precision)
    train.main(dataclasses.replace(config, output=tmp_path / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        save = trainer.Checkpoints.save

        def broken(self, progress):
            save(self, progress)
            if self.name == "dtr ranker" and progress.step == 2:
                raise KeyboardInterrupt

        patch.setattr(trainer.Checkpoints, "save", broken)
        with pytest.raises(KeyboardInterrupt):
            train.main(dataclasses.replace(config, output=tmp_path / "broken"))
    train.main(dataclasses.replace(config, output=tmp_path / "broken"))
    ones, others = (artifacts.read(tmp_path / name, "student").fingerprint for name in ("whole", "broken"))
    assert ones == others


def teacher(root, folder, ids, codebook="semantic_ids"):
    """A teacher's artifact, as far as a student looks."""
    made_from = [artifacts.read(root / codebook, "semantic_ids")]
    with ArtifactJob("teacher", SETTINGS, folder, made_from).write() as partial:
        checkpoint(partial, NETWORKS["llama"], ids.tokens())
    return folder


def test_by_the_command(root, tmp_path, ids):
    """In a process of its own: Accelerate knows one precision a process."""
    init = teacher(root, tmp_path / "teacher", ids)
    words = f"--run {root} --variant dwr --backbone causal --init {init} --lora_rank 2 --output {tmp_path / 'student'}"
    words += f" --gradient_checkpointing true --precision bf16 --epochs 1 --candidates {K} --max_history 4 --lr .01"
    words += " --valid_users 6 --width 5 --batch_size 4 --tracker none --checkpoint_every 0"
    command = [sys.executable, ROOT / "student/train.py", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert " train), " in done.stderr
    manifest = artifacts.read(tmp_path / "student", "student").manifest
    assert manifest["identity"]["extra"]["init"] == artifacts.read(init, "teacher").fingerprint
    student = Recommender.from_pretrained(tmp_path / "student")
    assert student.model.config.network["dtype"] == "bfloat16"  # the weights that did not train
    assert len(student.recommend([["i1", "i2"]], k=3)[0]) == 3
    with pytest.raises(SystemExit) as stopped:
        run(train.main, Config, argv=[*words.split(), "--backbone", "seq2seq"])
    assert stopped.value.code == 2


def another(ids, size):
    return dataclasses.replace(ids, codes=ids.codes.clip(max=size - 1), codebook_size=size)


def test_weights_tuned_again_in_place_are_another_start(root, tmp_path, ids):
    """Their files have the same sizes."""
    folder = checkpoint(tmp_path / "base", NETWORKS["llama"], ids.tokens())
    codebook = artifacts.read(root / "semantic_ids", "semantic_ids")
    before = [jobs.check_init(folder, codebook), jobs.identify_base(folder)]
    (folder / "README.md").write_text("A model.")
    assert [jobs.check_init(folder, codebook), jobs.identify_base(folder)] == before
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 0.1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    after = [jobs.check_init(folder, codebook), jobs.identify_base(folder)]
    assert all(now != then for now, then in zip(after, before, strict=True))
    then, now = before[0]["init"], after[0]["init"]
    changed = [name for name in then if now[name] != then[name]]
    assert changed == ["model.safetensors"] and now[changed[0]][0] == then[changed[0]][0]


BAD = {
    "seq2seq": (lambda root, folder, ids: {"backbone": "seq2seq"}, "--backbone seq2seq is none"),
    "lora without init": (lambda root, folder, ids: {"init": None, "lora_rank": 2}, "for a large student; give --init"),
    "nothing": (lambda root, folder, ids: {"init": folder / "nowhere"}, "no config.json with"),
    "adapter": (lambda root, folder, ids: {"init": written(folder / "a", "adapter_config.json")}, "teacher/merge.py"),
    "damaged": (
        lambda root, folder, ids: {"init": written(folder / "d", "config.json", "model.safetensors")},
        "is no causal language model",
    ),
    "codebook": (
        lambda root, folder, ids: {"init": checkpoint(folder / "c", NETWORKS["llama"], another(ids, 4).tokens())},
        "lacks 6 of the 18 codeword tokens .first '<a_4>'.: it was made for another codebook",
    ),
    "window": (lambda root, folder, ids: {"max_history": 30}, "Histories of 30 items take 93 tokens, .* reads 64"),
    "positions": (lambda root, folder, ids: {"init": checkpoint(folder / "b", bloom, ids.tokens())}, "ALiBi"),
    "short sight": (lambda root, folder, ids: {"init": checkpoint(folder / "m", mistral, ids.tokens())}, "alone"),
}


def written(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    return folder


def bloom(rows):
    return BloomForCausalLM(BloomConfig(vocab_size=rows, hidden_size=32, n_layer=1, n_head=4))


def mistral(rows):
    return MistralForCausalLM(MistralConfig(vocab_size=rows, num_key_value_heads=2, sliding_window=3, **SMALL))


@pytest.mark.parametrize("what", BAD)
def test_bad_input(root, tmp_path, ids, what):
    changes, said = BAD[what]
    base = checkpoint(tmp_path / "base", NETWORKS["llama"], ids.tokens())
    config = dataclasses.replace(SETTINGS, run=root, init=base, output=tmp_path / "student")
    with pytest.raises(UserError, match=said):
        train.main(dataclasses.replace(config, **changes(root, tmp_path, ids)))
    assert not list(tmp_path.glob("student*"))


def test_a_teacher_of_other_ids(root, tmp_path, ids):
    """Of the same sizes, so that its tokenizer looks right."""
    make_shop(tmp_path, LENGTHS, seed=7)
    init = teacher(tmp_path, tmp_path / "teacher", ids)
    with pytest.raises(UserError, match="another codebook"):
        train.main(dataclasses.replace(SETTINGS, run=root, init=init, output=tmp_path / "student"))
    assert not Path(tmp_path / "student").exists()
