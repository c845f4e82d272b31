from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from reference import graph_walk_naive

from distill.baselines import graph_walk
from distill.baselines.graph_walk import GraphHeuristic, GraphSettings
from distill.data.dataset import PAD, Dataset, write_dataset
from distill.metrics import hit_ranks, ndcg
from distill.runtime.artifacts import ArtifactJob

N_ITEMS = 30


@dataclass(frozen=True)
class Nothing:
    """No settings."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Items 28 and 29 are sold last only: the training part does not know them."""
    root, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    sequences = [np.append(rng.integers(0, 28, rng.integers(2, 7)), 28 + user % 2) for user in range(20)]
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        items = pa.table({"item_id": [f"i{number}" for number in range(N_ITEMS)]})
        write_dataset(folder, items, [f"u{user}" for user in range(20)], sequences)
    return Dataset.load(root / "dataset"), rng.normal(size=(N_ITEMS, 5))


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("exclude_bought", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        GraphSettings(((2, 1, 1),), 0.5, False),
        GraphSettings(((2, 1), (1, 1)), 2.0, True),
        GraphSettings(((0, 3), (2,), (1,)), 0.0, True),
    ],
)
def test_against_the_definition(shop, settings, exclude_bought, codes, monkeypatch):
    monkeypatch.setattr(graph_walk, "CHUNK", 7)
    data, vectors = shop
    if codes:  # two of sixteen codewords each, one-hot: sparse, and most likenesses tie
        vectors = np.eye(16)[np.random.default_rng(1).integers(0, 16, (N_ITEMS, 2))].reshape(N_ITEMS, -1)
    training = [data.sequence(user)[:-2].tolist() for user in range(data.n_users)]
    examples = data.examples("valid")
    lists = GraphHeuristic(data, vectors, settings).recommend(examples, 6, exclude_bought)
    for row, history in enumerate(examples.histories):
        bought = [int(item) for item in history if item != PAD]
        more = (settings.budgets, settings.alpha, settings.both, bought if exclude_bought else [])
        assert lists[row].tolist() == graph_walk_naive.recommend(training, vectors.tolist(), bought, 6, *more)


def test_by_hand(tmp_path):
    """0 → 1, 2 and 1 → 3 in the training part; 2 is more like 0 than 1 is, 4 is like nothing and nowhere."""
    with ArtifactJob("dataset", Nothing(), tmp_path / "dataset").write() as folder:
        rows = [[0, 1, 3, 9, 9], [0, 2, 9, 9], [5, 6, 0, 7, 8]]
        items = pa.table({"item_id": [f"i{number}" for number in range(10)]})
        write_dataset(folder, items, ["a", "b", "c"], [np.array(row) for row in rows])
    vectors = np.eye(10)
    vectors[2, 0], vectors[1, 0], vectors[3, 0] = 2.0, 0.5, 9.0
    model = GraphHeuristic(Dataset.load(tmp_path / "dataset"), vectors, GraphSettings(((1, 1, 1),), 0.5))
    examples = model_examples = Dataset.load(tmp_path / "dataset").examples("valid")
    assert model_examples.histories[2, :3].tolist() == [5, 6, 0]
    # hop 1: 2, then 3 as the only one at hop 2, nothing at hop 3; what hop 1 has left is 1
    assert model.recommend(examples.take(slice(2, 3)), 3).tolist() == [[2, 3, 1]]


def test_tune_takes_the_best_by_validation(shop):
    data, vectors = shop
    examples = data.examples("valid")

    def value(settings):
        lists = GraphHeuristic(data, vectors, settings).recommend(examples, 10)
        return ndcg(hit_ranks(lists, examples.targets), 10).mean()

    values = {settings: value(settings) for settings in graph_walk.GRID}
    assert values[GraphHeuristic.tune(data, vectors, True).settings] == max(values.values()) > min(values.values())
