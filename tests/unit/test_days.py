"""Cutting a data set into days."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from student_shop import Nothing

from distill.data.dataset import Dataset, write_dataset
from distill.data.days import split_days, write_days
from distill.runtime.artifacts import ArtifactJob


@pytest.fixture
def dataset(tmp_path):
    """Two users with sequences of ten and five of twenty items."""
    with ArtifactJob("dataset", Nothing(), tmp_path / "dataset").write() as folder:
        items = pa.table({"item_id": [f"i{number}" for number in range(20)]})
        write_dataset(folder, items, ["a", "b"], [np.arange(10), np.arange(10, 15)])
    return Dataset.load(tmp_path / "dataset")


def test_days_by_hand(dataset):
    """Of ten interactions days have six, two and two; of five three, one and one. Two items are launched later."""
    launch, day = split_days(dataset, 3, seed=0)
    assert sorted(launch) == [0] * 18 + [1, 2]
    expected = np.array([0] * 6 + [1] * 2 + [2] * 2 + [0] * 3 + [1, 2])
    expected[launch[dataset.values] > expected] = -1  # used before it was launched
    np.testing.assert_array_equal(day, expected)


def test_each_day_adds_to_the_ends_of_sequences(dataset, tmp_path):
    write_days(dataset, 3, 0, tmp_path)
    launch, day = split_days(dataset, 3, seed=0)
    before = {"a": [], "b": []}
    for number in (1, 2, 3):
        table = pq.read_table(tmp_path / f"day{number}" / "interactions.parquet").sort_by("timestamp")
        items = pq.read_table(tmp_path / f"day{number}" / "items.parquet")["item_id"].to_pylist()
        assert len(items) == (launch < number).sum() and len(table) == ((day >= 0) & (day < number)).sum()
        assert set(table["item_id"].to_pylist()) <= set(items)
        for user, earlier in before.items():
            sequence = table.filter(pa.compute.equal(table["user_id"], user))["item_id"].to_pylist()
            assert sequence[: len(earlier)] == earlier
            before[user] = sequence
