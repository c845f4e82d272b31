"""The real command: bad input ends with one message, exit code 2 and nothing written; finished work is kept."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.catalog import Dataset

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


HEAD = "user_id,item_id,timestamp\n"
BAD = {
    "no folder": (None, ["--format", "recbole", "--input", "none"], "No folder none"),
    "no input": (None, ["--format", "lcrec"], "name their folder with --input"),
    "no file": (lambda f: (f / "raw").mkdir(), ["--format", "recbole"], "missing file *.inter; found nothing"),
    "no column": (lambda f: write_tables(f, "user,item_id\nu,a\n"), ["--format", "table"], "missing column 'user_id'"),
    "unknown key": (None, ["--sead", "1"], "Unknown config key 'sead'. Did you mean 'seed'?"),
    "wrong type": (None, ["--seed", "x"], "seed"),
    "negative seed": (None, ["--seed", "-1"], "seed must not be negative"),
    "no users": (None, ["--users", "0"], "users: expected at least 1"),
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
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
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
    assert dataset.user_ids == ["u", "v"] and dataset.sequence(1).tolist() == [1, 2, 0]
    # Changed raw files make the data set stale.
    with open(tmp_path / "raw/interactions.csv", "a") as file:
        file.write("w,a,1\n")
    again = prepare(tmp_path, *arguments, "--short_users", "drop")
    assert again.returncode == 0 and "raw files" in again.stderr
    assert "1 users with too few items" in again.stdout
