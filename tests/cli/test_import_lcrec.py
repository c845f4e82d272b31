"""import_lcrec.py: a checkpoint in LC-Rec's published form becomes a teacher; it labels, and a student learns."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lcrec_form import GAPS, LEVELS, N_ITEMS, PROMPT, SIZE, USED, Nothing, make_run, write_checkpoint
from reference.llama_tokens_naive import encode
from transformers import LlamaConfig, LlamaForCausalLM

from distill import export_soft_labels as export
from distill.data.dataset import PAD, Dataset
from distill.labels.encodings import ENCODINGS, kl
from distill.labels.labeller import LabelRequest
from distill.labels.store import LabelStore
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import run
from distill.semantic_ids.ids import SemanticIDs, write_codes
from distill.teachers.language_model import EngineLabeller
from teacher import import_lcrec
from teacher.engines.hf import HFEngine

ROOT = Path(__file__).parents[2]
HISTORIES = np.array([[3, 1, 14, 9], [5, PAD, PAD, PAD], [9, 2, PAD, PAD]])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(run, sentencepiece, codewords' numbers); beside the run's artifacts the checkpoint, its base and its delta."""
    root = make_run(tmp_path_factory.mktemp("lcrec"))
    processor, added = write_checkpoint(root / "checkpoint")
    (root / "prompt.txt").write_text(PROMPT + "\n")
    return root, processor, added


def command(root, *words):
    """Exit code and messages of the command, run in this process."""
    error = io.StringIO()
    words = ["--run", root, "--checkpoint", root / "checkpoint", "--prompt", root / "prompt.txt", *words]
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(error):
        try:
            run(import_lcrec.main, import_lcrec.Config, None, [str(word) for word in words])
        except SystemExit as stop:
            return stop.code, error.getvalue()
    return 0, error.getvalue()


@pytest.fixture(scope="module")
def teacher(published):
    root = published[0]
    code, messages = command(root)
    assert code == 0, messages
    assert "codewords in the vocabulary, of 12 a level: a 5, b 3, c 4" in messages
    return root / "teacher"


@pytest.fixture(scope="module")
def shop(published):
    return Dataset.load(published[0] / "dataset"), SemanticIDs.load(published[0] / "semantic_ids")


@pytest.fixture(scope="module")
def engine(teacher, shop):
    return HFEngine.load(teacher, *shop)


@torch.no_grad()
def by_hand(published, shop, history):
    """Log-probabilities of the vocabulary before each codeword of every item, the prompt written out by hand."""
    root, processor, added = published
    ids = shop[1]
    text = PROMPT.replace("{history}", ", ".join(ids.text(item) for item in history if item != PAD))
    prompt = [1, *encode(text, processor, added)]
    model = LlamaForCausalLM.from_pretrained(root / "checkpoint", dtype=torch.float32).eval()
    forced = [encode(ids.text(item), processor, added) for item in range(N_ITEMS)]
    logits = model(torch.tensor([prompt + tokens for tokens in forced])).logits
    return logits[:, len(prompt) - 1 : -1].log_softmax(-1), torch.tensor(forced)


def test_lists_are_those_of_scoring_every_item(published, shop, engine):
    items, scores = engine.beams(HISTORIES, N_ITEMS, exclude_bought=True)
    for row, history in enumerate(HISTORIES):
        log_probs, forced = by_hand(published, shop, history)
        expected = log_probs.gather(2, forced[..., None])[..., 0].sum(1).numpy()
        order = [item for item in np.argsort(-expected).tolist() if item not in history]
        assert items[row][items[row] != PAD].tolist() == order
        np.testing.assert_allclose(scores[row, : len(order)], expected[order], atol=1e-4)
        assert np.ptp(expected) > 0.5  # a ranking to speak of


@pytest.mark.parametrize("scope", ["level", "all"])
def test_gaps_have_no_probability(published, shop, engine, scope):
    targets = np.array([0, 7, 12])
    found = engine.codeword_logprobs(HISTORIES, targets, scope)
    gaps = np.broadcast_to(GAPS if scope == "level" else GAPS.ravel(), found.shape)
    assert (found[torch.from_numpy(gaps.copy())] == -np.inf).all()
    added = published[2]
    for row, history in enumerate(HISTORIES):
        log_probs, _ = by_hand(published, shop, history)
        for level in range(LEVELS):
            levels = [level] if scope == "level" else range(LEVELS)
            known = [added[f"<{'abc'[each]}_{code}>"] for each in levels for code in USED[each]]
            expected = log_probs[targets[row], level, known]
            np.testing.assert_allclose(
                found[row, level][~torch.from_numpy(gaps[row, level].copy())], expected, atol=1e-4
            )
    np.testing.assert_allclose(found.softmax(-1).sum(-1), 1, atol=1e-6)  # the student's renormalisation


def test_unconstrained_beams_hold_known_codewords_only(shop, engine):
    """All 5 · 3 · 4 IDs of known codewords have finite scores, whatever the beam width."""
    width = 80
    items, scores = engine.beams(HISTORIES, width, exclude_bought=False, constrained=False)
    assert np.isfinite(scores).sum(1).tolist() == [60, 60, 60]
    for row in range(len(HISTORIES)):
        assert sorted(items[row][items[row] != PAD]) == list(range(N_ITEMS))
    examples = shop[0].examples("train", 20)
    request = LabelRequest(width=width, keep=5, constrained=False)
    labels = EngineLabeller(engine, shop[0], 8).label(examples, request, lambda _: None)
    assert np.isfinite(labels.scores).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_labels_with_gaps_are_stored(engine, encoding):
    log_probs = engine.codeword_logprobs(HISTORIES, np.array([0, 7, 12])).numpy()
    assert 0 <= kl(log_probs, encoding) < 1e-3
    for level in range(LEVELS):
        codec = ENCODINGS[encoding]
        decoded = codec.decode(codec.encode(log_probs[:, level]), SIZE)
        probabilities = np.exp(decoded)
        assert not np.isnan(decoded).any()
        np.testing.assert_allclose(probabilities.sum(1), np.exp(log_probs[:, level]).sum(1), rtol=2e-3)
        assert probabilities[:, GAPS[level]].max() < 1e-5


def test_the_tokens_are_those_of_the_tuning(published, engine, shop):
    """Also after the artifact was saved and loaded: the prompt's tokens as transformers before 4.34 made them."""
    _, processor, added = published
    tokens, lengths = engine.prompts(HISTORIES)
    for row, history in enumerate(HISTORIES):
        text = PROMPT.replace("{history}", ", ".join(shop[1].text(item) for item in history if item != PAD))
        assert tokens[row, : lengths[row]].tolist() == [1, *encode(text, processor, added)]
    longest = PROMPT.replace("{history}", ", ".join([shop[1].text(0)] * 20))
    assert engine.data.max_tokens == 1 + len(encode(longest, processor, added)) + LEVELS


def test_a_delta_and_its_base_are_the_whole_model(published, teacher, tmp_path):
    root = published[0]
    words = ["--checkpoint", root / "checkpoint-delta", "--base", root / "checkpoint-base"]
    code, messages = command(root, *words, "--output", tmp_path / "teacher")
    assert code == 0, messages
    sums, whole = (LlamaForCausalLM.from_pretrained(path).state_dict() for path in (tmp_path / "teacher", teacher))
    for key, value in whole.items():
        assert sums[key].dtype == torch.float16
        torch.testing.assert_close(sums[key], value, atol=2e-3, rtol=0)  # two roundings to half precision
    assert "finished, at" in command(root, *words, "--output", tmp_path / "teacher")[1]


def test_labels_and_a_student(published, teacher, tmp_path):
    root = published[0]
    config = export.Config(run=root, width=6, keep=4, batch_size=8, output=tmp_path / "soft_labels")
    export.main(config)
    store = LabelStore.open(tmp_path / "soft_labels")
    assert store.index["labeller"]["prompt"] == "file" and store.candidates == 4
    block = store.load()
    assert not np.isnan(block.log_probs(slice(None))).any()
    student = [
        sys.executable, ROOT / "student/train.py", "--variant", "distill", "--run", root, "--preset", "demo",
        "--soft_labels", tmp_path / "soft_labels", "--output", tmp_path / "student", "--epochs", "1",
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in student], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "NaN" not in (tmp_path / "student/curve.json").read_text()


class TestBadInput:
    """One message, exit code 2, nothing written."""

    def refused(self, root, tmp_path, *words):
        code, messages = command(root, *words, "--output", tmp_path / "out/teacher")
        assert code == 2 and messages.count("error: ") == 1 and "Traceback" not in messages, messages
        assert not (tmp_path / "out").exists()
        return messages

    def changed(self, published, tmp_path, *left_out):
        """A copy of the checkpoint without some of its files."""
        shutil.copytree(published[0] / "checkpoint", tmp_path / "copy", ignore=shutil.ignore_patterns(*left_out))
        return tmp_path / "copy"

    @pytest.mark.parametrize(
        ("text", "error_text"),
        [
            ("What is next?", "must hold the placeholder {history} once and no other; found: none"),
            ("After {inters}?", "found: {inters}"),
            ("{history} {instruction}", "found: {history}, {instruction}"),
            ("{history} and {history}", "found: {history}, {history}"),
            (b"\xff{history}", "is not UTF-8"),
            (None, "Cannot read the prompt"),
        ],
    )
    def test_prompts(self, published, tmp_path, text, error_text):
        path = tmp_path / "prompt.txt"
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        assert error_text in self.refused(published[0], tmp_path, "--prompt", path)

    @pytest.mark.parametrize(
        ("left_out", "error_text"),
        [
            ("config.json", "it holds no config.json"),
            ("*.safetensors", "expected *.safetensors"),
            ("added_tokens.json", "Are files missing (added_tokens.json)"),
            ("tokenizer*", "No tokenizer at"),
        ],
    )
    def test_missing_files(self, published, tmp_path, left_out, error_text):
        folder = self.changed(published, tmp_path, left_out)
        assert error_text in self.refused(published[0], tmp_path, "--checkpoint", folder)

    def test_pickled_weights(self, published, tmp_path):
        folder = self.changed(published, tmp_path, "*.safetensors")
        (folder / "pytorch_model-00001-of-00002.bin").touch()
        error_text = self.refused(published[0], tmp_path, "--checkpoint", folder)
        assert "(pytorch_model-00001-of-00002.bin)" in error_text and "save_pretrained('NEW')" in error_text

    def test_weights_cut_off(self, published, tmp_path):
        folder = self.changed(published, tmp_path)
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        assert "is a file missing or cut off?" in self.refused(published[0], tmp_path, "--checkpoint", folder)

    def test_deltas(self, published, tmp_path):
        root = published[0]
        error_text = self.refused(root, tmp_path, "--checkpoint", root / "checkpoint-delta")
        assert "holds the difference to a base model" in error_text and "--base" in error_text
        assert "holds a whole model" in self.refused(root, tmp_path, "--base", root / "checkpoint-base")
        other = tmp_path / "wide"
        config = LlamaConfig.from_pretrained(root / "checkpoint-base", hidden_size=32)
        LlamaForCausalLM(config).save_pretrained(other)
        error_text = self.refused(root, tmp_path, "--checkpoint", root / "checkpoint-delta", "--base", other)
        assert "does not fit the delta" in error_text

    def test_an_index_whose_codewords_are_not_the_models(self, published, tmp_path):
        root = published[0]
        codes = SemanticIDs.load(root / "semantic_ids").codes.copy()
        codes[4, 0] = 9
        data = artifacts.read(root / "dataset", "dataset")
        with ArtifactJob("semantic_ids", Nothing(), tmp_path / "ids", [data]).write() as folder:
            write_codes(folder, [f"i{number}" for number in range(N_ITEMS)], codes)
            artifacts.write_json(folder / "report.json", {"codebook_size": SIZE})
        error_text = self.refused(root, tmp_path, "--semantic_ids", tmp_path / "ids")
        assert "1 of them are in IDs of" in error_text and "'<a_9>'" in error_text

    def test_an_index_of_other_items(self, published, tmp_path):
        """Refused where the index is imported."""
        root = published[0]
        index = {str(item): ["<a_1>", "<b_0>", f"<c_{item % 12}>"] for item in range(N_ITEMS + 1)}
        (tmp_path / "index.json").write_text(json.dumps(index))
        words = ["--run", root, "--index", tmp_path / "index.json", "--output", tmp_path / "ids"]
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts/build_semantic_ids.py"), *map(str, words)],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 2 and "has 1 items that the data set of 16 has not" in done.stderr
        assert not (tmp_path / "ids").exists()

    def test_histories_longer_than_the_window(self, published, tmp_path):
        error_text = self.refused(published[0], tmp_path, "--max_history", 200)
        assert "is 256; lower --max_history" in error_text
