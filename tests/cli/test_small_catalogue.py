"""The commands on a catalogue of four items, fewer than beams, lists and neighbours are asked for."""

import contextlib
import io
import json

import numpy as np
import pyarrow as pa
import pytest

from distill import export_soft_labels
from distill.data.dataset import write_dataset
from distill.labels.store import LabelStore
from distill.runtime.artifacts import ArtifactJob, read, write_json
from distill.runtime.config import JobSettings, parse
from distill.semantic_ids import embeddings
from distill.semantic_ids.ids import write_codes
from scripts import add_memory, evaluate, recommend, report
from student import train
from student.config import Config as StudentConfig

IDS = ["a", "b", "c", "d"]


def run(module, root, *words, config=None):
    """Run a command and return what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        module.main(parse(config or module.Config, None, [*(["--run", str(root)] if root else []), *words]))
    return out.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with labels of the counting teacher, a student and its memory, an evaluation and a report."""
    root = tmp_path_factory.mktemp("run")
    with ArtifactJob("dataset", JobSettings(), root / "dataset").write() as folder:
        rows = [np.array([0, 1, 2]), np.array([1, 2, 3]), np.array([3, 2, 1, 0]), np.array([0, 2, 3])]
        write_dataset(folder, pa.table({"item_id": IDS, "title": IDS}), ["u", "v", "w", "x"], rows)
    data = read(root / "dataset", "dataset")
    with ArtifactJob("semantic_ids", JobSettings(), root / "semantic_ids", [data]).write() as folder:
        write_codes(folder, IDS, np.array([[0, 0], [0, 1], [1, 0], [1, 1]]))
        write_json(folder / "report.json", {"codebook_size": 2})
    with ArtifactJob("embeddings", JobSettings(), root / "embeddings", [data]).write() as folder:
        embeddings.write(folder, np.eye(4, dtype=np.float32), IDS)
    run(export_soft_labels, root, "--mix", "transitions=1.0")
    words = "--variant dwr --epochs 1 --batch_size 4 --valid_users 4 --tracker none --checkpoint_every 0"
    run(train, root, *words.split(), config=StudentConfig)
    run(add_memory, root, "--content", "true", "--student", str(root / "students/dwr"))
    run(evaluate, root)
    run(report, root)
    return root


def test_lists_end_with_the_catalogue(trained):
    rows = {row["system"]: row for row in json.loads((trained / "evaluation/metrics.json").read_text())}
    assert {"popularity", "transitions", "graph", "content", "dwr", "dwr+memory+content"} <= rows.keys()
    for row in rows.values():
        assert 0 <= row["recall@1"] <= row["recall@10"] == row["recall@20"] <= 1
    assert (trained / "report/report.html").is_file()


def test_labels(trained):
    store = LabelStore.open(trained / "soft_labels")
    candidates = store.load().candidates()
    assert store.rows == 1 and set(np.unique(candidates)) <= {-1, 0, 1, 2, 3}  # of w alone
    for row in candidates:
        assert len(set(row[row >= 0])) == (row >= 0).sum()


@pytest.mark.parametrize("name", ["dwr", "dwr+memory+content"])
def test_recommendations(trained, name):
    words = ["--student", str(trained / "students" / name), "--history", "a", "--k", "1000", "--width", "1000"]
    items = json.loads(run(recommend, None, *words, "--format", "json"))["items"]
    assert sorted(item["item_id"] for item in items) == ["b", "c", "d"]
