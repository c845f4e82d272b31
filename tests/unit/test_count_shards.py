"""Transition counts in shards of rows against the pairs counted at once, and a memory that is made of them."""

import numpy as np
import pytest
from reference import counting_naive
from unit.test_examples import dataset

from distill.baselines import count_shards
from distill.baselines.counting import TransitionSettings
from distill.data import dataset as dataset_module
from distill.runtime.errors import UserError
from student.transition_memory import TransitionMemory

SETTINGS = TransitionSettings(window=3, decay=0.5, recency=0.6, last=4)  # with decay 1/2 all sums are exact
N_ITEMS = 50  # of `dataset`


def log(seed=0, users=30):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, N_ITEMS, rng.integers(3, 12)) for _ in range(users)]


def test_ranges_by_hand():
    """Window 1: an item bought n times has at most 2n pairs."""
    purchases = np.array([1, 2, 0, 5, 1, 0])
    assert count_shards.divide_rows(purchases, 1, most_pairs=6).tolist() == [0, 3, 4, 6]  # the fourth has 10 alone
    assert count_shards.divide_rows(purchases, 1, most_pairs=18).tolist() == [0, 6]
    assert count_shards.divide_rows(purchases, 3, most_pairs=1).tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("with_validation", [False, True])
@pytest.mark.parametrize("at_once", [1, 40, 10**6])
def test_shards_are_rows_of_all_counts(monkeypatch, with_validation, at_once):
    monkeypatch.setattr(dataset_module, "INTERACTIONS_AT_ONCE", at_once)
    rows = log()
    shop = dataset(rows)
    purchases = shop.count_purchases(with_validation)
    counted = [row[: len(row) - (1 if with_validation else 2)].tolist() for row in rows]
    assert purchases.tolist() == np.bincount(np.concatenate(counted).astype(int), minlength=N_ITEMS).tolist()
    starts = count_shards.divide_rows(purchases, SETTINGS.window, most_pairs=100)
    shards = list(count_shards.count_shards(shop, SETTINGS, starts, with_validation))
    assert len(shards) > 5 and [shard.shape[0] for shard in shards] == np.diff(starts).tolist()
    expected = np.array(counting_naive.count(counted, N_ITEMS, SETTINGS.window, SETTINGS.decay))
    assert np.concatenate([shard.toarray() for shard in shards]).tolist() == expected.tolist()


def test_a_memory_in_shards_is_that_of_one_matrix(monkeypatch, tmp_path):
    shop, histories = dataset(log()), np.array([[3, 7, 11, -1], [8, 8, 0, 49]])
    whole = TransitionMemory.of(shop, SETTINGS, weight=0.25)
    monkeypatch.setattr(count_shards, "PAIRS_AT_ONCE", 200)
    in_memory = TransitionMemory.of(shop, SETTINGS, weight=0.25)
    mapped = TransitionMemory.of(shop, SETTINGS, scratch=tmp_path, weight=0.25)
    grown = mapped.grow([[3, 49, 7], [20, 21]], [1, 2])
    for name, memory in (("memory", in_memory), ("mapped", mapped), ("grown", grown)):
        n_shards = len(memory.table.shards())
        (tmp_path / name).mkdir()
        memory.save(tmp_path / name)
        files = [f"memory-{number:05}-of-{n_shards:05}.safetensors" for number in range(1, n_shards + 1)]
        assert n_shards > 3 and sorted(path.name for path in (tmp_path / name).iterdir()) == files
        expected = whole if name != "grown" else whole.grow([[3, 49, 7], [20, 21]], [1, 2])
        for tested in (memory, TransitionMemory.load(tmp_path / name, memory.facts())):
            assert tested.facts() == expected.facts()
            assert tested.counts.toarray().tolist() == expected.counts.toarray().tolist()
            assert tested.familiarity().tolist() == expected.familiarity().tolist()
            probabilities, wanted = (each.probabilities(histories).toarray().tolist() for each in (tested, expected))
            assert probabilities == wanted


def test_damaged_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(count_shards, "PAIRS_AT_ONCE", 200)
    memory = TransitionMemory.of(dataset(log()), SETTINGS)
    memory.table.shards()[1].data[0] = np.nan
    memory.save(tmp_path)
    with pytest.raises(UserError, match=r"memory-00002-of-.* is damaged: a count is NaN or infinite"):
        TransitionMemory.load(tmp_path, memory.facts())
    next(tmp_path.glob("memory-00003-*")).unlink()
    with pytest.raises(UserError, match=r"memory-00003-of-.* is missing"):
        TransitionMemory.load(tmp_path, memory.facts())
