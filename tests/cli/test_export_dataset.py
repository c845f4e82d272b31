"""Export to the formats of other projects and read back: the data set is the same."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distill.data.dataset import Dataset, write_dataset
from distill.runtime.artifacts import ArtifactJob, read, write_json
from distill.semantic_ids.ids import write_codes

ROOT = Path(__file__).resolve().parents[2]
ITEMS = pa.table(
    {
        "item_id": ["A", "ü 2", "C", "D"],
        "title": ['An "A"', "Größe, 5 mm", "", "one\\two"],
        "description": ["a. b", "", "it's", ""],
        "brand": ["", "", "x", ""],
        "categories": ["Home, Garden", "", "", ""],
    }
)
SEQUENCES = [[2, 0, 1, 3], [0, 0, 2], [3, 1, 0]]
TIMES = [[5, 5, 7, 9], [-3, 0, 2], [1, 2, 1700000000]]


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def make(folder, items=ITEMS, times=TIMES, users=("v", "7", "u x"), ends=None):
    with ArtifactJob("dataset", Nothing(), folder).write() as partial:
        write_dataset(partial, items, list(users), [np.array(row) for row in SEQUENCES], times, ends)
    return read(folder, "dataset")


def command(script, folder, *arguments):
    line = [sys.executable, str(ROOT / f"scripts/{script}.py"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, cwd=folder, timeout=120)


def export(folder, form, *arguments):
    return command("export_dataset", folder, "--dataset", "data", "--format", form, "--output", "out/Shop", *arguments)


def read_back(folder, form):
    result = command(
        "prepare_data", folder, "--format", form, "--input", "out/Shop", "--run", "again", "--empty_text", "keep"
    )
    assert result.returncode == 0, result.stderr
    return read(folder / "again/dataset", "dataset")


@pytest.mark.parametrize(("form", "times"), [("recbole", TIMES), ("lcrec", None)])
def test_out_and_in_again(tmp_path, form, times):
    made = make(tmp_path / "data", times=times)
    result = export(tmp_path, form)
    assert result.returncode == 0, result.stderr
    assert read_back(tmp_path, form).fingerprint == made.fingerprint
    assert not list((tmp_path / "out").glob("*.partial"))


def test_recbole_files(tmp_path):
    make(tmp_path / "data", times=None)
    assert export(tmp_path, "recbole").returncode == 0
    lines = (tmp_path / "out/Shop/Shop.inter").read_text().splitlines()
    assert lines[:3] == ["user_id:token\titem_id:token\ttimestamp:float", "v\tC\t0", "v\tA\t1"]  # no times: positions
    lines = (tmp_path / "out/Shop/Shop.item").read_text().splitlines()
    assert lines[0].split("\t")[:2] == ["item_id:token", "title:token_seq"]
    assert lines[2] == "ü 2\tGröße, 5 mm\t\t\t"
    sequences = [Dataset.load(tmp_path / "data").sequence(user).tolist() for user in range(3)]
    read_back(tmp_path, "recbole")
    assert [Dataset.load(tmp_path / "again/dataset").sequence(user).tolist() for user in range(3)] == sequences


def test_recbole_texts_fit_their_fields(tmp_path):
    items = ITEMS.set_column(1, "title", pa.array(['"Quoted" at the start', "two\n\tlines", 'in "between"', "x"]))
    make(tmp_path / "data", items)
    assert export(tmp_path, "recbole").returncode == 0
    read_back(tmp_path, "recbole")
    titles = Dataset.load(tmp_path / "again/dataset").items["title"].to_pylist()
    assert titles == ["'Quoted' at the start", "two lines", 'in "between"', "x"]


def make_ids(folder, dataset, n_items=4):
    with ArtifactJob("semantic_ids", Nothing(), folder, [dataset]).write() as partial:
        write_codes(partial, [str(i) for i in range(n_items)], np.arange(3 * n_items).reshape(n_items, 3))
        write_json(partial / "report.json", {"codebook_size": 256})


def test_lcrec_files(tmp_path):
    make_ids(tmp_path / "ids", make(tmp_path / "data", times=None))
    result = export(tmp_path, "lcrec", "--semantic_ids", "ids")
    assert result.returncode == 0, result.stderr
    files = {path.name: path for path in (tmp_path / "out/Shop").iterdir()}
    assert set(files) == {"Shop.inter.json", "Shop.item.json", "Shop.item2id", "Shop.index.json"}
    assert json.loads(files["Shop.inter.json"].read_text()) == {"v": [2, 0, 1, 3], "7": [0, 0, 2], "u x": [3, 1, 0]}
    index = json.loads(files["Shop.index.json"].read_text())
    assert list(index) == ["0", "1", "2", "3"] and index["2"] == ["<a_6>", "<b_7>", "<c_8>"]
    item = json.loads(files["Shop.item.json"].read_text())["0"]
    assert item == {"title": 'An "A"', "description": "a. b", "brand": "", "categories": "Home, Garden"}
    assert files["Shop.item2id"].read_text().splitlines()[1] == "ü 2\t1"


def test_refusals(tmp_path):
    other = make(tmp_path / "other", users=("x", "y", "z"))
    make(tmp_path / "data")
    make_ids(tmp_path / "ids", other)
    make(tmp_path / "tab", ITEMS.set_column(0, "item_id", pa.array(["a\tb", "c", "d", "e"])))
    (tmp_path / "out/full").mkdir(parents=True)
    (tmp_path / "out/full/letter.txt").write_text("dear")
    for arguments, message in (
        (["--dataset", "none", "--format", "lcrec", "--output", "out/x"], "No dataset at none"),
        (["--dataset", "data", "--format", "lcrec", "--output", "out/full"], "exists and is not empty"),
        (["--dataset", "data", "--format", "csv", "--output", "out/x"], "format"),
        (["--dataset", "tab", "--format", "lcrec", "--output", "out/x"], r"item id 'a\tb' (1 such ids)"),
        (
            ["--dataset", "data", "--format", "lcrec", "--output", "out/x", "--semantic_ids", "ids"],
            "do not belong together",
        ),
        (
            ["--dataset", "data", "--format", "recbole", "--output", "out/x", "--semantic_ids", "ids"],
            "has no file for semantic IDs",
        ),
    ):
        result = command("export_dataset", tmp_path, *arguments)
        assert result.returncode == 2 and message in result.stderr, result.stderr
        assert "\nerror: " in "\n" + result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["full"]


def test_a_split_by_time_is_not_in_the_files(tmp_path):
    make(tmp_path / "data", ends=np.array([[1, 2], [1, 2], [1, 2]]))
    result = export(tmp_path, "recbole")
    assert result.returncode == 0 and "do not say where time was cut" in result.stderr
