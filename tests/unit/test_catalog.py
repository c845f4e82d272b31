from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.artifacts import Stage, UserError
from distill.catalog import PAD, Dataset, write_dataset

SEQUENCES = [[0, 1, 2, 3, 4], [4, 2, 0], [5, 3, 1, 5]]
TITLES, BRANDS = ["A", "B", "", "D", "E", "F"], ["x", "", "", "y", "", ""]
ITEMS = pa.table({"item_id": list("abcdef"), "title": TITLES, "brand": BRANDS})


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def make(root, sequences=SEQUENCES, items=ITEMS, times=None):
    with Stage("dataset", Nothing(), root / "dataset").write() as folder:
        users = [f"u{number}" for number in range(len(sequences))]
        write_dataset(folder, items, users, [np.array(sequence) for sequence in sequences], times)
    return Dataset.load(root / "dataset")


def listed(examples):
    """Examples as (user, position, history, target)."""
    histories = [[int(item) for item in row if item != PAD] for row in examples.histories]
    for row, history in zip(examples.histories, histories, strict=True):
        assert row[: len(history)].tolist() == history  # padding on the right only
    columns = (examples.users.tolist(), examples.positions.tolist(), histories, examples.targets.tolist())
    return list(zip(*columns, strict=True))


def test_leave_one_out_by_hand(tmp_path):
    data = make(tmp_path)
    assert (data.n_items, data.n_users, data.user_ids) == (6, 3, ["u0", "u1", "u2"])
    assert listed(data.examples("test")) == [(0, 4, [0, 1, 2, 3], 4), (1, 2, [4, 2], 0), (2, 3, [5, 3, 1], 5)]
    assert listed(data.examples("valid")) == [(0, 3, [0, 1, 2], 3), (1, 1, [4], 2), (2, 2, [5, 3], 1)]
    assert listed(data.examples("train")) == [(0, 1, [0], 1), (0, 2, [0, 1], 2), (2, 1, [5], 3)]


def test_history_is_cut_to_the_last_items(tmp_path):
    data = make(tmp_path, [[0, 1, 2, 3, 4, 5, 0], [3, 4, 5]])
    assert data.examples("test", 3).histories.tolist() == [[3, 4, 5], [3, 4, PAD]]
    assert data.examples("valid", 3).histories.tolist() == [[2, 3, 4], [3, PAD, PAD]]
    assert [row[2] for row in listed(data.examples("train", 2))] == [[0], [0, 1], [1, 2], [2, 3]]
    assert data.examples("test").histories.shape == (2, 20)


def test_training_sequences(tmp_path):
    values, offsets = make(tmp_path).training_sequences()
    assert values.tolist() == [0, 1, 2, 4, 5, 3] and offsets.tolist() == [0, 3, 4, 6]


@given(st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=9), min_size=1, max_size=6), st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_splits_by_definition(sequences, longest):
    offsets = np.cumsum([0, *map(len, sequences)])
    data = Dataset(None, ITEMS, [f"u{u}" for u in range(len(sequences))], np.concatenate(sequences), offsets)
    for split in ("train", "valid", "test"):
        expected = []
        for user, sequence in enumerate(sequences):
            last = len(sequence) - 1
            positions = {"test": [last], "valid": [last - 1], "train": range(1, last - 1)}[split]
            expected += [(user, p, sequence[max(p - longest, 0) : p], sequence[p]) for p in positions]
        assert listed(data.examples(split, longest)) == expected
    values, starts = data.training_sequences()
    assert [values[a:b].tolist() for a, b in pairwise(starts)] == [s[:-2] for s in sequences]


def test_nobody_to_train_on(tmp_path):
    examples = make(tmp_path, [[0, 1, 2]]).examples("train", 4)
    assert len(examples) == 0 and examples.histories.shape == (0, 4)


def test_take(tmp_path):
    examples = make(tmp_path).examples("train")
    assert listed(examples.take(np.array([2, 0]))) == [(2, 1, [5], 3), (0, 1, [0], 1)]
    assert listed(examples.take(slice(1, 2))) == [(0, 2, [0, 1], 2)]


def test_texts(tmp_path):
    assert make(tmp_path).texts() == ["A. x", "B", "", "D. y", "E", "F"]


def test_times_and_missing_columns(tmp_path):
    make(tmp_path, times=[[1, 2, 3, 4, 5], [6, 7, 8], [9, 9, 9, 10]])
    table = pq.read_table(tmp_path / "dataset" / "sequences.parquet")
    assert table["timestamps"].to_pylist()[1] == [6, 7, 8]
    items = pq.read_table(tmp_path / "dataset" / "items.parquet")
    assert set(items["description"].to_pylist()) == {""}


def test_without_times(tmp_path):
    make(tmp_path)
    table = pq.read_table(tmp_path / "dataset" / "sequences.parquet")
    assert table["timestamps"].to_pylist() == [None, None, None]


@pytest.mark.parametrize(
    ("items", "users", "sequences", "message"),
    [
        (["a", "b", "a"], ["u"], [[0, 1, 2]], "Duplicate item id 'a' in items (row 2)"),
        (["a", "b", "c"], ["u", "v", "u"], [[0, 1, 2]] * 3, "Duplicate user id 'u' in sequences (row 2)"),
        (["a", "b", "c"], ["u"], [[0, 1, 3]], "User u names an item outside the catalogue of 3 items"),
        (["a", "b", "c"], ["u"], [[0, -1, 1]], "User u names an item outside the catalogue of 3 items"),
        (["a", "b", "c"], ["u", "v"], [[0, 1, 2], [0, 1]], "User v has 2 interactions"),
        (["a", "b", "c"], ["u"], [[]], "User u has 0 interactions"),
    ],
)
def test_refusals(tmp_path, items, users, sequences, message):
    with pytest.raises(UserError) as error:
        write_dataset(tmp_path, pa.table({"item_id": items}), users, [np.array(s, dtype=int) for s in sequences])
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_damaged_files(tmp_path):
    make(tmp_path)
    path = tmp_path / "dataset" / "sequences.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"sequences\.parquet is not a readable parquet file"):
        Dataset.load(tmp_path / "dataset")
    pq.write_table(pa.table({"user_id": ["u"]}), path)
    with pytest.raises(UserError, match="has no column 'items'; it has user_id"):
        Dataset.load(tmp_path / "dataset")
    path.unlink()
    with pytest.raises(UserError, match="Missing file"):
        Dataset.load(tmp_path / "dataset")
