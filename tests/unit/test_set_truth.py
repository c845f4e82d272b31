"""Sets of later items as truth: figures and examples worked out by hand."""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distill import metrics
from distill.data.dataset import PAD, Dataset, write_dataset
from distill.evaluation.set_truth import SetExamples, measure_sets
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from distill.semantic_ids import embeddings
from student.baseline import main as train_baseline
from student.config import BaselineConfig

ROOT = Path(__file__).resolve().parents[2]
SECOND, THIRD = 1 / np.log2(3), 1 / np.log2(4)


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def test_recall_and_ndcg_by_hand():
    lists = np.array([[4, 7, 2], [4, 7, 2], [4, 7, -1], [9, 8, 7]])
    truth = np.array([[2, 4, 5, 6], [7, -1, -1, -1], [0, 1, -1, -1], [7, 8, 9, -1]])
    np.testing.assert_allclose(metrics.set_recall(lists, truth, 3), [2 / 4, 1, 0, 1])
    ideal = 1 + SECOND + THIRD
    np.testing.assert_allclose(metrics.set_ndcg(lists, truth, 3), [(1 + THIRD) / ideal, SECOND, 0, 1])
    # of four later items two could be in the first two places
    np.testing.assert_allclose(metrics.set_ndcg(lists, truth, 2), [1 / (1 + SECOND), SECOND, 0, 1])
    np.testing.assert_allclose(metrics.set_recall(lists, truth, 2), [1 / 4, 1, 0, 2 / 3])


def test_a_set_of_one_is_the_next_item():
    rng = np.random.default_rng(0)
    lists = np.stack([rng.permutation(20)[:10] for _ in range(50)])
    targets = rng.integers(20, size=50)
    ranks = metrics.hit_ranks(lists, targets)
    np.testing.assert_allclose(metrics.set_recall(lists, targets[:, None], 5), metrics.recall(ranks, 5))
    np.testing.assert_allclose(metrics.set_ndcg(lists, targets[:, None], 5), metrics.ndcg(ranks, 5))


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Six items and a split by time; item 5 is cold, user c has no history before the test part."""
    root = tmp_path_factory.mktemp("cut")
    sequences = [np.array(row) for row in ([0, 1, 2, 3, 5, 3], [1, 0, 4, 5], [2, 3], [0, 1, 2, 3, 4])]
    ends = np.array([[2, 3], [3, 3], [0, 0], [4, 5]])
    times = [np.arange(len(row)) for row in sequences]
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        items = pa.table({"item_id": [f"i{number}" for number in range(6)]})
        write_dataset(folder, items, ["a", "b", "c", "d"], sequences, times, ends)
    data = artifacts.read(root / "dataset", "dataset")
    with ArtifactJob("embeddings", Nothing(), root / "embeddings", [data]).write() as folder:
        embeddings.write(folder, np.eye(6, dtype=np.float32), [f"i{number}" for number in range(6)])
    return root


def test_examples_by_hand(cut):
    dataset = Dataset.load(cut / "dataset")
    examples = SetExamples.of(dataset, "test", 4)
    assert examples.users.tolist() == [0, 1]
    assert examples.histories.tolist() == [[0, 1, 2, PAD], [1, 0, 4, PAD]]
    assert examples.truth.tolist() == [[3, 5], [5, PAD]]  # bought twice, it is in the set once
    valid = SetExamples.of(dataset, "valid", 4)
    assert valid.users.tolist() == [0, 3] and valid.truth.tolist() == [[2], [4]]


def test_figures_by_hand(cut):
    """Scores fall from item 0 to item 5: all rank alike."""
    dataset = Dataset.load(cut / "dataset")
    counts = np.bincount(dataset.training_sequences()[0], minlength=6)
    assert counts.tolist() == [3, 3, 1, 1, 1, 0]
    examples = SetExamples.of(dataset, "test", 4)

    def score(histories):
        return np.tile(-np.arange(6.0), (len(histories), 1))

    row = measure_sets(score, examples, counts, [4], exclude_bought=False)
    # user a: {3, 5}, 3 in the fourth place; user b: {5}, sixth
    assert row["all"] == {
        "users": 2,
        "recall@4": pytest.approx(1 / 4),
        "ndcg@4": pytest.approx(1 / np.log2(5) / (1 + SECOND) / 2),
    }
    assert row["warm"] == {"users": 1, "recall@4": 1.0, "ndcg@4": pytest.approx(1 / np.log2(5))}
    assert row["cold"] == {"users": 2, "recall@4": 1.0, "ndcg@4": 1.0}  # the only cold item comes first
    groups = metrics.popularity_groups(counts)
    named = row[f"popularity {groups[3] + 1}"]
    assert named["users"] == 1 and named["recall@4"] == 1.0
    assert row["popularity 1"] == {"users": 0, "recall@4": None, "ndcg@4": None}
    # without the bought items 0, 1, 2 item 3 comes first for user a; user b's 5 comes third, after 2 and 3
    row = measure_sets(score, examples, counts, [4], exclude_bought=True)
    assert row["all"]["ndcg@4"] == pytest.approx(((1 + THIRD) / (1 + SECOND) + THIRD) / 2)


def test_a_split_without_sets_is_refused(tmp_path):
    with ArtifactJob("dataset", Nothing(), tmp_path / "dataset").write() as folder:
        items = pa.table({"item_id": ["i0", "i1"]})
        sequences, ends = [np.array([0, 1, 0]), np.array([1, 0])], np.array([[2, 3], [0, 0]])
        write_dataset(folder, items, ["a", "b"], sequences, [np.arange(len(row)) for row in sequences], ends)
    with pytest.raises(UserError, match="No user of the data set has a history before its test part"):
        SetExamples.of(Dataset.load(tmp_path / "dataset"), "test", 4)


def test_the_command(cut, tmp_path, capsys):
    train_baseline(BaselineConfig(run=cut, dim=8, layers=1, epochs=1, tracker="none"))
    spec = importlib.util.spec_from_file_location("evaluate_sets", ROOT / "scripts/evaluate_sets.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    script.main(script.Config(run=cut, output=tmp_path / "sets", cutoffs=[2]))
    *others, row = json.loads((tmp_path / "sets/metrics.json").read_text())
    assert row["system"] == "sasrec" and row["all"]["users"] == 2 and row["cold"]["recall@2"] == 1.0
    rows = {other["system"]: other for other in others}
    assert rows.keys() == {"popularity", "transitions", "transitions+valid", "content", "counter+content"}
    assert {each["floor"] for each in (*others, row)} < rows.keys()
    assert rows["transitions"]["cold"]["recall@2"] == 0.0  # it has never seen them
    with pytest.raises(UserError, match="not empty"):
        script.main(script.Config(run=cut, output=tmp_path / "sets"))
