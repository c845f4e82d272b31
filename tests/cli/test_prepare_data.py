"""Run the real command: bad input ends with one message, exit code 2 and nothing written; finished work is kept."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data.dataset import Dataset

ROOT = Path(__file__).resolve().parents[2]


def prepare(folder, *arguments):
    command = [sys.executable, str(ROOT / "scripts/prepare_data.py"), "--run", str(folder / "run"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60)


def write_tables(folder, interactions=None, items="item_id,title\na,A\nb,B\nc,C\n"):
    (folder / "raw").mkdir()
    rows = "".join(f"u,{item},{time}\nv,{item},{time}\n" for time, item in enumerate("abc"))
    (folder / "raw/interactions.csv").write_text(interactions or "user_id,item_id,timestamp\n" + rows)
    if items:
        (folder / "raw/items.csv").write_text(items)


def write_lcrec(folder, inter):
    (folder / "raw").mkdir()
    (folder / "raw/N.inter.json").write_text(inter)
    (folder / "raw/N.item2id").write_text("A\t0\nB\t1\nC\t2\n")


def write_truncated_parquet(folder):
    (folder / "raw").mkdir()
    path = folder / "raw/interactions.parquet"
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]}), path)
    path.write_bytes(path.read_bytes()[:-20])


def write_amazon(folder, reviews=None, metadata=None, cut=None):
    """Six users with six items each; the metadata lack nothing but what is given instead."""
    (folder / "raw").mkdir()
    rows = reviews or [
        {"reviewerID": f"u{u}", "asin": f"B{i}", "unixReviewTime": 100 * u + i, "overall": 5.0, "reviewText": "x" * 40}
        for u in range(6)
        for i in range(6)
    ]
    text = gzip.compress("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows).encode())
    (folder / "raw/N.json.gz").write_bytes(text[:cut])
    rows = metadata or [{"asin": f"B{i}", "title": f"Salt &amp; <b>pepper</b> {i}"} for i in range(6)]
    (folder / "raw/meta_N.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


HEAD = "user_id,item_id,timestamp\n"
AMAZON = ["--format", "amazon"]
BAD = {
    "no folder": (None, ["--format", "recbole", "--input", "none"], "No folder none"),
    "no input": (None, ["--format", "lcrec"], "name their folder with --input"),
    "no file": (lambda f: (f / "raw").mkdir(), ["--format", "recbole"], "missing file *.inter; found nothing"),
    "no column": (lambda f: write_tables(f, "user,item_id\nu,a\n"), ["--format", "table"], "missing column 'user_id'"),
    "unknown key": (None, ["--sead", "1"], "Unknown config key 'sead'. Did you mean 'seed'?"),
    "wrong type": (None, ["--seed", "x"], "seed"),
    "negative seed": (None, ["--seed", "-1"], "--seed is -1; expected a whole number from 0 to 4294967295"),
    "no users": (None, ["--users", "0"], "--users is 0; expected a whole number of at least 1"),
    "malformed line": (
        lambda f: write_tables(f, HEAD + "u,a,1\nu,b\n"),
        ["--format", "table"],
        "interactions.csv:3: malformed or cut off: expected 3 fields, got 2",
    ),
    "unknown item": (
        lambda f: write_tables(f, HEAD + "u,a,1\nu,b,2\nu,z,3\n"),
        ["--format", "table"],
        "interactions.csv:4: unknown item 'z'",
    ),
    "short user": (
        lambda f: write_tables(f, HEAD + "u,a,1\nu,b,2\n"),
        ["--format", "table"],
        "user 'u' has 2 interactions, leave-one-out needs at least 3",
    ),
    "only short users": (
        lambda f: write_tables(f, HEAD + "u,a,1\nu,b,2\n"),
        ["--format", "table", "--short_users", "drop"],
        "no user with at least 3 interactions",
    ),
    "duplicate item": (
        lambda f: write_tables(f, items="item_id,title\na,A\nb,B\nc,C\na,D\n"),
        ["--format", "table"],
        "items.csv:5: duplicate item id 'a'",
    ),
    "empty text": (
        lambda f: write_tables(f, items="item_id,title\na,A\nb,\nc,C\n"),
        ["--format", "table"],
        "items.csv:3: expected a text for every item, found none for item 'b' (1 such items)",
    ),
    "truncated parquet": (write_truncated_parquet, ["--format", "table"], "not a readable parquet file"),
    "truncated json": (lambda f: write_lcrec(f, '{"0": [0, 1'), ["--format", "lcrec"], "cut off or no JSON"),
    "cut-off archive": (
        lambda f: write_amazon(f, cut=200),
        AMAZON,
        "N.json.gz: cut off or damaged (Compressed file ended before the end-of-stream marker was reached) after",
    ),
    "malformed lines": (
        lambda f: write_amazon(f, ["nonsense\n"] * 3),
        [*AMAZON, "--max_bad_lines", "2"],
        "N.json.gz:1: expected a JSON object on one line, got 'nonsense'. 3 malformed lines up to line 3, 2 are",
    ),
    "reviews without metadata": (
        lambda f: write_amazon(f, metadata=[{"asin": "B0", "title": "A"}, {"asin": "B1", "title": "B"}]),
        AMAZON,
        "no metadata for 4 of the 6 items reviewed, first B2",
    ),
    "items without text": (
        lambda f: write_amazon(f, metadata=[{"asin": f"B{i}", "title": "<br>" * (i == 3) or "A"} for i in range(6)]),
        AMAZON,
        "expected a text for every item, found none for item 'B3' (1 such items)",
    ),
    "empty core": (write_amazon, [*AMAZON, "--k_core", "7"], "outside the 7-core (items: 7); nothing remains"),
    "negative core": (
        None,
        [*AMAZON, "--input", ".", "--k_core", "-1"],
        "--k_core is -1; expected a whole number of at least 0 or null",
    ),
    "core of the demo": (None, ["--k_core", "5"], "the simulator needs all items of the demo"),
    "cuts without the split": (None, ["--valid_from", "0.5"], "add --split global_cut"),
    "no such moment": (None, ["--split", "global_cut", "--valid_from", "soon"], "valid_from: expected a share"),
    "no times to cut": (
        lambda f: write_lcrec(f, '{"0": [0, 1, 0]}'),
        ["--format", "lcrec", "--split", "global_cut"],
        "there are no times to cut",
    ),
    "nothing after the cut": (
        write_amazon,
        [*AMAZON, "--split", "global_cut", "--test_from", "2018-05-31"],
        "the test part has no target",
    ),
    "all items withheld": (None, ["--withhold", "1"], "--withhold is 1; expected a number of at least 0 and below 1"),
    "negative share": (None, ["--withhold", "-0.1"], "--withhold is -0.1; expected a number of at least 0 and below 1"),
    "no training target left": (
        None,
        ["--users", "9", "--withhold", "0.999"],
        "without 599 of the 600 items the training part has no target left. Choose a smaller share.",
    ),
    "no ratings": (
        lambda f: write_lcrec(f, '{"0": [0, 1, 2]}'),
        ["--format", "lcrec", "--min_rating", "3"],
        "there are no ratings to compare with --min_rating",
    ),
    "no rating column": (
        write_tables,
        ["--format", "table", "--min_rating", "3"],
        "missing column 'rating'. Available: user_id, item_id, timestamp. Name it with --rating_column.",
    ),
    "unknown item number": (
        lambda f: write_lcrec(f, '{"0": [0, 1, 7]}'),
        ["--format", "lcrec"],
        "N.inter.json:1: user '0' names the unknown item 7",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(tmp_path, name):
    prepared, arguments, message = BAD[name]
    if prepared:
        prepared(tmp_path)
        arguments = [*arguments, "--input", "raw"]
    result = prepare(tmp_path, *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "\nerror: " in "\n" + result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_bad_input_leaves_finished_work_alone(tmp_path):
    write_tables(tmp_path)
    arguments = ["--format", "table", "--input", "raw"]
    assert prepare(tmp_path, *arguments).returncode == 0
    before = (tmp_path / "run/dataset/manifest.json").read_text()
    (tmp_path / "raw/items.csv").write_text("item_id,title\na,A\na,B\n")
    assert prepare(tmp_path, *arguments).returncode == 2
    assert (tmp_path / "run/dataset/manifest.json").read_text() == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["dataset"]


def test_foreign_output_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    result = prepare(tmp_path, "--output", "mine", "--users", "5")
    assert result.returncode == 2 and "exists and is no dataset" in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_demo(tmp_path):
    def fingerprint():
        return json.loads((tmp_path / "run/dataset/manifest.json").read_text())["fingerprint"]

    first = prepare(tmp_path, "--users", "50")
    assert first.returncode == 0, first.stderr
    assert "interactions" in first.stdout and "sparsity" in first.stdout
    dataset = Dataset.load(tmp_path / "run/dataset")
    assert dataset.n_users == 50 and dataset.n_items == 600
    assert (tmp_path / "run/dataset/simulator.safetensors").is_file()
    made = fingerprint()

    second = prepare(tmp_path, "--users", "50")
    assert second.returncode == 0 and "finished" in second.stderr and not second.stdout

    third = prepare(tmp_path, "--users", "50", "--overwrite")
    assert third.returncode == 0 and "wrote" in third.stderr
    assert fingerprint() == made

    fourth = prepare(tmp_path, "--users", "50", "--seed", "1")
    assert fourth.returncode == 0 and "seed (0 -> 1) changed" in fourth.stderr
    assert fingerprint() != made


def test_tables(tmp_path):
    write_tables(tmp_path, items="item_id,title,brand\nc,C,Acme\na,A,\nb,B,\nd,,\n")
    arguments = ["--format", "table", "--input", "raw", "--empty_text", "keep"]
    result = prepare(tmp_path, *arguments)
    assert result.returncode == 0, result.stderr
    dataset = Dataset.load(tmp_path / "run/dataset")
    assert dataset.texts() == ["C. Acme", "A", "B", ""]
    assert dataset.user_ids.to_pylist() == ["u", "v"] and dataset.sequence(1).tolist() == [1, 2, 0]
    # Changed raw files make the data set stale.
    with open(tmp_path / "raw/interactions.csv", "a") as file:
        file.write("w,a,1\n")
    again = prepare(tmp_path, *arguments, "--short_users", "drop")
    assert again.returncode == 0 and "raw files" in again.stderr
    assert "1 users with too few items" in again.stdout


def test_amazon_with_its_defaults(tmp_path):
    """5-core, first of repeated reviews, clean texts; what is left out is said."""
    write_amazon(tmp_path)
    extra = [{"reviewerID": "u0", "asin": f"B{i}", "unixReviewTime": 9999, "overall": 1.0} for i in (0, 9)]
    with gzip.open(tmp_path / "raw/N.json.gz", "at") as file:
        file.write("".join(json.dumps(row) + "\n" for row in extra))
    result = prepare(tmp_path, *AMAZON, "--input", "raw")
    assert result.returncode == 0, result.stderr
    assert "left out 1 of 38 interactions, repeated (first)" in result.stderr
    assert "left out 1 of 37 interactions, outside the 5-core" in result.stderr
    dataset = Dataset.load(tmp_path / "run/dataset")
    assert dataset.n_users == 6 and dataset.items["title"].to_pylist() == [f"Salt & pepper {i}" for i in range(6)]
    assert all(dataset.sequence(user).tolist() == list(range(6)) for user in range(6))
    for number in ("6 ", "36", "0.00%", "6.00"):  # the paper's Table 3
        assert number in result.stdout
    # other wishes make it again; with everything off all reviews are there
    arguments = ["--duplicates", "keep", "--k_core", "0", "--empty_text", "keep", "--clean_html", "false"]
    again = prepare(tmp_path, *AMAZON, "--input", "raw", *arguments)
    assert again.returncode == 0 and "made again" in again.stderr, again.stderr
    dataset = Dataset.load(tmp_path / "run/dataset")
    assert dataset.n_items == 7 and len(dataset.values) == 38
    assert dataset.items["title"].to_pylist()[0] == "Salt &amp; <b>pepper</b> 0"


def test_split_by_time(tmp_path):
    write_amazon(tmp_path)
    arguments = [*AMAZON, "--input", "raw", "--split", "global_cut", "--valid_from", "0.5", "--test_from", "500"]
    result = prepare(tmp_path, *arguments)
    assert result.returncode == 0, result.stderr
    assert "validation from 1970-01-01T00:05:00 UTC, test from 1970-01-01T00:08:20 UTC" in result.stderr
    dataset = Dataset.load(tmp_path / "run/dataset")  # u0 to u2 train, u3 and u4 validate, u5 tests
    assert [len(dataset.examples(split)) for split in ("train", "valid", "test")] == [15, 10, 5]
    assert set(dataset.examples("test").users.tolist()) == {5}
    assert len(dataset.training_sequences()[0]) == 18
    assert "finished" in prepare(tmp_path, *arguments).stderr
    # the same from a file, with a date
    config = (
        "format: amazon\ninput: raw\nrun: run\nsplit: global_cut\nvalid_from: 0.5\ntest_from: 1970-01-01T00:08:20\n"
    )
    (tmp_path / "data.yaml").write_text(config)
    assert prepare(tmp_path, "--config", "data.yaml").returncode == 0
    assert [len(Dataset.load(tmp_path / "run/dataset").examples(split)) for split in ("valid", "test")] == [10, 5]
    other = prepare(tmp_path, *AMAZON, "--input", "raw")
    assert "made again" in other.stderr and Dataset.load(tmp_path / "run/dataset").ends is None


def test_withheld_items(tmp_path):
    def manifest():
        return json.loads((tmp_path / "run/dataset/manifest.json").read_text())

    assert prepare(tmp_path, "--users", "200").returncode == 0
    plain, fingerprint = Dataset.load(tmp_path / "run/dataset"), manifest()["fingerprint"]
    assert "withheld" not in plain.items.column_names and "withhold" not in json.dumps(manifest()["identity"])
    result = prepare(tmp_path, "--users", "200", "--withhold", "0.05")
    assert result.returncode == 0 and "made again, because withhold changed" in result.stderr, result.stderr
    assert "withheld 30 of 600 items" in result.stderr
    data = Dataset.load(tmp_path / "run/dataset")
    withheld = data.items["withheld"].to_numpy()
    assert withheld.sum() == manifest()["facts"]["withheld_items"] == 30
    assert data.texts() == plain.texts()  # the catalogue is whole
    assert set(np.flatnonzero(withheld)) <= set(data.cold_items())
    for split in ("valid", "test"):
        assert data.examples(split).targets.tolist() == plain.examples(split).targets.tolist()
    assert withheld[data.examples("test").targets].any()
    # without the option, the same bytes as before
    assert prepare(tmp_path, "--users", "200").returncode == 0
    assert manifest()["fingerprint"] == fingerprint


def test_benchmark(tmp_path):
    """The benchmark runs the real command and refuses to compare unless pandas keeps the same interactions."""
    size = ["--interactions", "4000", "--reviews", "100", "--folder", str(tmp_path), "--json", "figures.json"]
    command = [sys.executable, str(ROOT / "scripts/bench.py"), "data", *size]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["kept_interactions"] >= 5 * figures["kept_users"] > 0
    assert figures["prepare_s_4e3"] > 0 and figures["prepare_gib_4e3"] < 4 and figures["read_jsonl_gz_mb_per_s"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
