"""The real commands, from texts to semantic IDs, and what they say to bad input."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from distill import rqvae
from distill.artifacts import Stage
from distill.catalog import write_dataset
from distill.semantic_ids import SemanticIDs

ROOT = Path(__file__).parents[2]
KINDS, LINES = ["tent", "kettle", "lamp", "rope"], ["aurora", "basalt", "cedar", "delta", "ember"]
TITLES = [f"{line} {kind} number {i}" for i, (kind, line) in enumerate((k, n) for k in KINDS for n in LINES)]
FAST = ["--epochs", "30", "--warmup_epochs", "10", "--codebook_size", "8", "--levels", "3", "--hidden", "[16]"]


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def make_dataset(root, titles):
    ids = [f"item{i}" for i in range(len(titles))]
    items = pa.table({"item_id": ids, "title": titles})
    with Stage("dataset", Nothing(), root / "dataset").write() as folder:
        write_dataset(folder, items, ["u", "v"], [np.array([0, 1, 2]), np.array([2, 1, 0, 3])])


def make_embeddings(root, tensors):
    with Stage("embeddings", Nothing(), root / "embeddings").write() as folder:
        save_file(tensors, folder / "embeddings.safetensors")


def command(script, root, *words):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), "--run", str(root), *words],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # tiny tensors: threads would only wait for each other
    )
    return done.returncode, done.stdout, done.stderr


def refused(script, root, *words, kind):
    code, _, error = command(script, root, *words)
    assert code == 2, error
    assert error.startswith("error: ") or "\nerror: " in error
    assert "Traceback" not in error
    assert not (root / kind).exists() and not (root / f"{kind}.partial").exists()
    return error


def write_index(root, table, name="index.json"):
    path = root / name
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return str(path)


def good_index(n=20):
    return {str(i): [f"<a_{i % 4}>", f"<b_{i // 4}>"] for i in range(n)}


def test_texts_to_ids(tmp_path):
    make_dataset(tmp_path, TITLES)
    code, _, error = command("embed_items.py", tmp_path, "--dim", "8")
    assert code == 0, error
    embeddings = load_file(tmp_path / "embeddings" / "embeddings.safetensors")["embeddings"]
    assert embeddings.shape == (20, 8) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)

    code, output, error = command("build_semantic_ids.py", tmp_path, *FAST)
    assert code == 0, error
    assert "perplexity" in output and "collision rate" in output
    ids = SemanticIDs.load(tmp_path / "semantic_ids", n_items=20)
    assert ids.codes.shape == (20, 3) and ids.codebook_size == 8 and ids.n_distinct == 20
    report = json.loads((tmp_path / "semantic_ids" / "report.json").read_text())
    assert report["collision_rate"] == 0 and report["distinct_ids"] == 20 and len(report["per_level"]) == 3
    model = rqvae.load(tmp_path / "semantic_ids")
    np.testing.assert_array_equal(model.encode(embeddings)[:, :-1], ids.codes[:, :-1])

    before = (tmp_path / "semantic_ids" / "manifest.json").stat().st_mtime_ns
    code, _, error = command("build_semantic_ids.py", tmp_path, *FAST)
    assert code == 0 and "finished" in error
    assert (tmp_path / "semantic_ids" / "manifest.json").stat().st_mtime_ns == before


def test_import_of_an_index(tmp_path):
    make_dataset(tmp_path, [""] * 20)
    table = good_index()
    table["7"] = table["3"]  # taken as they are, collisions too
    path = write_index(tmp_path, table)
    code, output, error = command("build_semantic_ids.py", tmp_path, "--index", path)
    assert code == 0, error
    assert "19 distinct IDs" in output
    ids = SemanticIDs.load(tmp_path / "semantic_ids", n_items=20)
    assert ids.text(5) == "<a_1><b_1>" and ids.text(7) == ids.text(3)
    write_index(tmp_path, good_index())
    code, _, error = command("build_semantic_ids.py", tmp_path, "--index", path)
    assert code == 0 and "made again, because index changed" in error


def without(table, *keys):
    return {key: value for key, value in table.items() if key not in keys}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (without(good_index(), "4", "11"), "misses 2 of the data set's 20 items, the first is item '4'"),
        (good_index(22), "has 2 items that the data set of 20 has not, the first is item '20'"),
        (good_index() | {"3": ["<a_1>", "<c_2>"]}, 'item 3: malformed token "<c_2>" at level 2'),
        (good_index() | {"6": ["<a_1>"]}, "item 6: has 1 levels, item 0 has 2"),
        ('{"0": ["<a_1>"', "is not readable JSON"),
    ],
)
def test_bad_indices(tmp_path, table, message):
    make_dataset(tmp_path, [""] * 20)
    path = write_index(tmp_path, table)
    error = refused("build_semantic_ids.py", tmp_path, "--index", path, kind="semantic_ids")
    assert message in error and path in error


def test_missing_inputs_name_their_command(tmp_path):
    error = refused("build_semantic_ids.py", tmp_path, kind="semantic_ids")
    assert "prepare_data.py" in error
    make_dataset(tmp_path, TITLES)
    error = refused("build_semantic_ids.py", tmp_path, kind="semantic_ids")
    assert "embed_items.py" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--codebook_size", "2", "--levels", "2"], "20 items do not fit into 4 codes"),
        (["--codebook_sise", "64"], "Did you mean 'codebook_size'?"),
        (["--index", "nowhere.json"], "No file nowhere.json"),
    ],
)
def test_bad_settings(tmp_path, words, message):
    make_dataset(tmp_path, TITLES)
    make_embeddings(tmp_path, {"embeddings": np.eye(20, dtype=np.float32)})
    assert message in refused("build_semantic_ids.py", tmp_path, *words, kind="semantic_ids")


def test_embeddings_of_another_catalogue_and_nan(tmp_path):
    make_dataset(tmp_path, TITLES)
    make_embeddings(tmp_path, {"embeddings": np.eye(19, dtype=np.float32)})
    assert "shape [19, 19]" in refused("build_semantic_ids.py", tmp_path, kind="semantic_ids")
    broken = np.eye(20, dtype=np.float32)
    broken[3, 3] = np.nan
    make_embeddings(tmp_path, {"embeddings": broken})
    assert "item 3 holds NaN" in refused("build_semantic_ids.py", tmp_path, kind="semantic_ids")


def test_items_without_text(tmp_path):
    make_dataset(tmp_path, [""] * 20)
    assert "build_semantic_ids.py --index" in refused("embed_items.py", tmp_path, kind="embeddings")


def test_some_items_without_text(tmp_path):
    make_dataset(tmp_path, [*TITLES[:5], "", "  ", *TITLES[7:]])
    error = refused("embed_items.py", tmp_path, kind="embeddings")
    assert "2 of 20 items have no text, the first is item 5 ('item5')" in error
    code, _, error = command("embed_items.py", tmp_path, "--empty_text", "keep")
    assert code == 0, error
    embeddings = load_file(tmp_path / "embeddings" / "embeddings.safetensors")["embeddings"]
    np.testing.assert_array_equal(embeddings[5], embeddings[6])
    assert np.linalg.norm(embeddings[5]) == pytest.approx(1, abs=1e-5)


def test_hf_embedder_refuses(tmp_path):
    make_dataset(tmp_path, TITLES)
    assert "needs a model" in refused("embed_items.py", tmp_path, "--embedder", "hf", kind="embeddings")
    (tmp_path / "empty").mkdir()
    words = ["--embedder", "hf", "--model", str(tmp_path / "empty")]
    assert "is not a model that transformers can load" in refused("embed_items.py", tmp_path, *words, kind="embeddings")


def test_hf_embeddings_are_means_over_the_tokens(tmp_path):
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    make_dataset(tmp_path, [*TITLES[:5], "aurora"])
    words = ["[UNK]", *KINDS, *LINES, "number"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes)).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    environment = ["--embedder", "hf", "--model", str(tmp_path / "model"), "--batch_size", "4"]
    code, _, error = command("embed_items.py", tmp_path, *environment)
    assert code == 0, error
    found = load_file(tmp_path / "embeddings" / "embeddings.safetensors")["embeddings"]
    assert found.shape == (6, 16)
    for row in (0, 5):
        tokens = tokenizer([*TITLES[:5], "aurora"][row], return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            expected = model.model(**tokens).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(found[row], expected.numpy(), atol=1e-5)
