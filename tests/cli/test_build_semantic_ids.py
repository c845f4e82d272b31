"""From embeddings to semantic IDs: the command, its report, imports, extensions, and what it says to bad input."""

import html
import json
import re

import numpy as np
import pytest
from by_command import TITLES, command, make_dataset, make_embeddings, real_command, refused, write_json
from safetensors.numpy import load_file

from distill.runtime import artifacts
from distill.semantic_ids import quantisers
from distill.semantic_ids.ids import SemanticIDs
from distill.semantic_ids.lineage import ancestors

SHORT = ["--rqvae.epochs", "30", "--rqvae.warmup_epochs", "10", "--rqvae.hidden", "[16]"]
FAST = ["--codebook_size", "8", "--levels", "3", *SHORT]


def good_index(n=20):
    return {str(i): [f"<a_{i % 4}>", f"<b_{i // 4}>"] for i in range(n)}


def test_texts_to_ids(tmp_path):
    make_dataset(tmp_path, TITLES)
    code, _, error = command("embed_items.py", tmp_path, "--dim", "8")
    assert code == 0, error
    vectors = load_file(tmp_path / "embeddings" / "embeddings.safetensors")["embeddings"]

    code, output, error = real_command("build_semantic_ids.py", tmp_path, *FAST)
    assert code == 0, error
    assert "perplexity" in output and "collision rate" in output
    ids = SemanticIDs.load(tmp_path / "semantic_ids", n_items=20)
    assert ids.codes.shape == (20, 3) and ids.codebook_size == 8 and len(np.unique(ids.codes, axis=0)) == 20
    report = json.loads((tmp_path / "semantic_ids" / "report.json").read_text())
    assert report["collision_rate"] == 0 and report["distinct_ids"] == 20 and len(report["per_level"]) == 3
    assert report["neighbours"]["k"] == 10 and report["co_purchase"]["pairs"] == 1
    assert sum(report["explained_per_level"]) == pytest.approx(1 - report["reconstruction_error"])
    model = quantisers.load(tmp_path / "semantic_ids")
    np.testing.assert_array_equal(model.encode(vectors)[:, :-1], ids.codes[:, :-1])

    page = (tmp_path / "semantic_ids" / "report.html").read_text()
    assert report["verdict"] in html.unescape(page) and page.count("<svg") == 6
    assert not re.search(r'(src|href)="(?!#)', page)  # nothing is fetched

    before = (tmp_path / "semantic_ids" / "manifest.json").stat().st_mtime_ns
    code, _, error = command("build_semantic_ids.py", tmp_path, *FAST)
    assert code == 0 and "finished" in error
    assert (tmp_path / "semantic_ids" / "manifest.json").stat().st_mtime_ns == before


def test_numbered_ids_need_no_embeddings(tmp_path):
    make_dataset(tmp_path, [""] * 20)
    cid = ["--quantiser", "cid", "--levels", "3", "--codebook_size", "8", "--spectral.clusters", "2"]
    error = refused("build_semantic_ids.py", tmp_path, "--quantiser", "cid", "--levels", "1", kind="semantic_ids")
    assert "needs --levels of at least 2" in error
    code, output, error = command("build_semantic_ids.py", tmp_path, *cid)
    assert code == 0, error
    assert "20 distinct IDs" in output
    report = json.loads((tmp_path / "semantic_ids" / "report.json").read_text())
    assert report["source"] == "cid" and "neighbours" not in report
    code, _, error = command("build_semantic_ids.py", tmp_path, *cid)
    assert code == 0 and "finished" in error
    code, _, error = command("build_semantic_ids.py", tmp_path, *cid, "--spectral.leaf", "2")
    assert code == 0 and "made again, because spectral changed" in error
    error = refused("build_semantic_ids.py", tmp_path, "--quantiser", "iid", "--output", "iid", kind="iid")
    assert "expected --levels 1 --codebook_size 20" in error
    words = ["--extend", "semantic_ids", "--output", "longer"]
    make_embeddings(tmp_path, np.eye(20))
    assert "has no quantiser" in refused("build_semantic_ids.py", tmp_path, *words, kind="longer")


@pytest.mark.parametrize("name", ["rqvae", "rkmeans", "pq"])
def test_new_items_leave_old_codes_untouched(tmp_path, name):
    rng = np.random.default_rng(0)
    old = rng.normal(size=(20, 12)).astype(np.float32)
    make_dataset(tmp_path, TITLES)
    make_embeddings(tmp_path, old)
    code, _, error = command("build_semantic_ids.py", tmp_path, *FAST, "--quantiser", name)
    assert code == 0, error
    first = SemanticIDs.load(tmp_path / "semantic_ids")

    # a longer catalogue in another order; among the new items, twins of old ones, which would take their codes
    order = rng.permutation(30)
    rows = np.concatenate([old, old[:5], rng.normal(size=(5, 12)).astype(np.float32)])[order]
    make_dataset(tmp_path, [f"thing {i}" for i in order], [f"item{i}" for i in order], "longer")
    make_embeddings(tmp_path, rows, "more")
    words = ["--dataset", "longer", "--embeddings", "more", "--extend", "semantic_ids", "--output", "longer_ids"]
    code, output, error = command("build_semantic_ids.py", tmp_path, *words)
    assert code == 0, error
    assert "20 items kept their codes, 10 are new" in output
    ids = SemanticIDs.load(tmp_path / "longer_ids", n_items=30)
    codes = dict(zip(ids.item_ids, ids.codes.tolist(), strict=True))
    assert [codes[item] for item in first.item_ids] == first.codes.tolist()
    assert len(np.unique(ids.codes, axis=0)) == 30
    for new in range(20, 25):  # twins are close: all but the last code
        assert (
            codes[f"item{new}"][:-1] == quantisers.load(tmp_path / "semantic_ids").encode(old)[new - 20, :-1].tolist()
        )

    # again, on top of the extension
    code, output, error = command("build_semantic_ids.py", tmp_path, *words[:5], "longer_ids", "--output", "again")
    assert code == 0, error
    np.testing.assert_array_equal(SemanticIDs.load(tmp_path / "again").codes, ids.codes)

    # the manifest names all IDs that it goes back to, the latest first
    first, second, third = (
        artifacts.read(tmp_path / name, "semantic_ids") for name in ("semantic_ids", "longer_ids", "again")
    )
    assert [ancestors(ids) for ids in (first, second, third)] == [
        [], [first.fingerprint], [second.fingerprint, first.fingerprint],
    ]  # fmt: skip


def test_extension_refuses_what_does_not_fit(tmp_path):
    rng = np.random.default_rng(1)
    old = rng.normal(size=(20, 12))
    make_dataset(tmp_path, TITLES)
    make_embeddings(tmp_path, old)
    fast = ["--quantiser", "rkmeans", "--levels", "2", "--codebook_size", "8"]
    assert command("build_semantic_ids.py", tmp_path, *fast)[0] == 0

    def refused_extension(*words):
        words = [*words, "--extend", "semantic_ids", "--output", "longer"]
        return refused("build_semantic_ids.py", tmp_path, *words, kind="longer")

    make_dataset(tmp_path, TITLES[1:], [f"item{i}" for i in range(1, 20)], "fewer")
    make_embeddings(tmp_path, old[1:], "fewer_rows")
    assert "1 of 20 items" in refused_extension("--dataset", "fewer", "--embeddings", "fewer_rows")
    make_embeddings(tmp_path, old[:, :6], "narrow")
    assert "have 6 dimensions" in refused_extension("--embeddings", "narrow")
    make_embeddings(tmp_path, rng.normal(size=(20, 12)), "elsewhere")
    assert "are not in the space of the old ones" in refused_extension("--embeddings", "elsewhere")
    make_dataset(tmp_path, [*TITLES, *TITLES], name="double")
    make_embeddings(tmp_path, np.concatenate([old, np.repeat(old[:1], 20, axis=0)]), "twins")
    error = refused_extension("--dataset", "double", "--embeddings", "twins")
    assert "share the prefix" in error and "only 8 codes" in error
    code, _, error = command("build_semantic_ids.py", tmp_path, "--extend", "semantic_ids")
    assert code == 2 and "which this command reads and would destroy" in error
    index = write_json(tmp_path / "index.json", good_index())
    assert command("build_semantic_ids.py", tmp_path, "--index", index, "--output", "imported")[0] == 0
    words = ["--extend", "imported", "--output", "longer"]
    assert "has no quantiser" in refused("build_semantic_ids.py", tmp_path, *words, kind="longer")


def test_import_of_an_index(tmp_path):
    make_dataset(tmp_path, [""] * 20)
    table = good_index()
    table["7"] = table["3"]  # taken as they are, collisions too
    path = write_json(tmp_path / "index.json", table)
    code, output, error = command("build_semantic_ids.py", tmp_path, "--index", path)
    assert code == 0, error
    assert "19 distinct IDs" in output
    ids = SemanticIDs.load(tmp_path / "semantic_ids", n_items=20)
    assert ids.text(5) == "<a_1><b_1>" and ids.text(7) == ids.text(3)
    report = json.loads((tmp_path / "semantic_ids" / "report.json").read_text())
    assert report["source"] == "index.json" and "neighbours" not in report and "reconstruction_error" not in report
    assert len(report["prefix_sharing"]["per_length"]) == 2 and report["collision_rate"] == pytest.approx(0.05)
    write_json(tmp_path / "index.json", good_index())
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
    path = write_json(tmp_path / "index.json", table)
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
    make_embeddings(tmp_path, np.eye(20))
    assert message in refused("build_semantic_ids.py", tmp_path, *words, kind="semantic_ids")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.eye(19), "shape [19, 19]"),
        (np.where(np.eye(20) * np.arange(20) == 3, np.nan, np.eye(20)), "item 3 ('item3') holds NaN"),
        (np.eye(20) * (np.arange(20) != 7), "item 7 ('item7') is zero"),
    ],
)
def test_embeddings_that_cannot_be_right(tmp_path, rows, message):
    make_dataset(tmp_path, TITLES)
    make_embeddings(tmp_path, rows)
    assert message in refused("build_semantic_ids.py", tmp_path, kind="semantic_ids")


def test_embeddings_of_another_data_set_and_damaged_ones(tmp_path):
    make_dataset(tmp_path, TITLES)
    assert command("embed_items.py", tmp_path, "--dim", "8")[0] == 0
    make_dataset(tmp_path, [f"{title} anew" for title in TITLES], name="other")
    error = refused("build_semantic_ids.py", tmp_path, "--dataset", "other", kind="semantic_ids")
    assert "do not belong together" in error
    path = tmp_path / "embeddings" / "embeddings.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    assert "is damaged" in refused("build_semantic_ids.py", tmp_path, kind="semantic_ids")
