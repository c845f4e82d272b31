"""Targets as ranges, and the examples that are made of them, against loops over users."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data import dataset as dataset_module
from distill.data import examples as examples_module
from distill.data.dataset import PAD, Dataset
from distill.labels.selection import sample_of_users, shard_bounds
from distill.runtime.artifacts import Artifact


def dataset(sequences, ends=None, held_out=None):
    offsets = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])])
    artifact = Artifact("", "dataset", "", {}, {}, {})
    items = pa.table({"item_id": [str(number) for number in range(50)]})
    values = np.concatenate(sequences).astype(np.int32)
    return Dataset(artifact, items, pa.nulls(len(sequences)), values, offsets, ends, held_out)


def naive(sequences, ends, held_out, split, max_history):
    """Examples as rows (user, position, history, target), one after the other."""
    rows = []
    for user, sequence in enumerate(sequences):
        train, valid = (len(sequence) - 2, len(sequence) - 1) if ends is None else ends[user]
        start, end = {"train": (1, train), "valid": (train, valid), "test": (valid, len(sequence))}[split]
        if split == "train" and held_out is not None and held_out[user]:
            continue
        for position in range(max(start, 1), end):
            history = list(sequence[max(position - max_history, 0) : position])
            rows.append((user, position, history + [PAD] * (max_history - len(history)), sequence[position]))
    return rows


def rows_of(examples):
    columns = (examples.users, examples.positions, examples.histories, examples.targets)
    return [tuple(row) for row in zip(*(column.tolist() for column in columns), strict=True)]


@st.composite
def shops(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = rng.integers(3, 9, draw(st.integers(1, 12)))
    sequences = [rng.integers(0, 50, length) for length in lengths]
    by_time = draw(st.booleans())
    ends = np.sort(rng.integers(0, lengths[:, None] + 1, (len(lengths), 2)), axis=1) if by_time else None
    held_out = rng.random(len(lengths)) < 0.3 if draw(st.booleans()) else None
    return sequences, ends, held_out


@settings(deadline=None, max_examples=60)
@given(shops(), st.sampled_from(["train", "valid", "test"]), st.integers(1, 6), st.integers(0, 2**32))
def test_any_part_of_the_targets(shop, split, max_history, seed):
    data, expected = dataset(*shop), naive(*shop, split, max_history)
    targets, rng = data.targets(split, max_history), np.random.default_rng(seed)
    assert len(targets) == len(expected)
    assert rows_of(data.examples(split, max_history)) == expected
    first, end = np.sort(rng.integers(0, len(expected) + 1, 2))
    assert rows_of(targets.take(slice(first, end))) == expected[first:end]
    chosen = rng.integers(0, len(expected), 5) if expected else np.zeros(0, np.int64)
    examples = targets.take(chosen)
    assert rows_of(examples) == [expected[row] for row in chosen]
    assert targets.find(examples.users, examples.positions).tolist() == chosen.tolist()
    every = [(user, position) for user in range(len(shop[0])) for position in range(10)]
    number_of = {row[:2]: number for number, row in enumerate(expected)}
    assert targets.find(*np.array(every).T).tolist() == [number_of.get(pair, -1) for pair in every]
    some = [row for row in expected if 2 <= row[0] < 5]
    assert rows_of(targets.of_users(2, 5).take(slice(None))) == some
    limit = int(rng.integers(1, len(expected) + 3))
    assert rows_of(targets.head(limit).take(slice(None))) == expected[:limit]
    assert rows_of(targets.of_users(2, 5).head(limit).take(slice(None))) == some[:limit]


def test_histories_are_gathered_block_by_block(monkeypatch):
    shop = ([np.arange(9), np.arange(5, 12)], None, None)
    expected = rows_of(dataset(*shop).examples("train", 4))
    monkeypatch.setattr(examples_module, "BLOCK", 2)
    assert rows_of(dataset(*shop).examples("train", 4)) == expected == naive(*shop, "train", 4)


@pytest.mark.parametrize("at_once", [1, 7, 100])
@pytest.mark.parametrize("repeated", [None, "train", "test"])
def test_repeats_by_parts(monkeypatch, at_once, repeated):
    """Only the training part counts, and an item of another user is no repeat."""
    monkeypatch.setattr(dataset_module, "INTERACTIONS_AT_ONCE", at_once)
    last = [4, 5, 6, 7, 8, 9]
    last[{"train": 3, "test": 5}.get(repeated, 0)] = 4
    assert dataset([np.arange(9), np.arange(4), np.array(last)]).repeats() == (repeated == "train")


def test_shards_by_hand():
    """Users of 2, 2, 7, 1 and 3 targets: at most five a shard, but whole users."""
    ends = np.cumsum([2, 2, 7, 1, 3])
    assert shard_bounds(ends, 5).tolist() == [0, 4, 11, 15]
    assert shard_bounds(ends, 1).tolist() == [0, 2, 4, 11, 12, 15] and shard_bounds(ends, 99).tolist() == [0, 15]


def test_a_sample_has_users_whole_but_for_the_last():
    rng = np.random.default_rng(0)
    shop = ([rng.integers(0, 50, length) for length in rng.integers(3, 12, 30)], None, None)
    expected = naive(*shop, "train", 3)
    sample = rows_of(sample_of_users(dataset(*shop).targets("train", 3), 20))
    assert len(sample) == 20 and sample == sorted(sample, key=lambda row: row[:2])
    users = sorted({row[0] for row in sample})
    assert sample == [row for row in expected if row[0] in users][:20]
