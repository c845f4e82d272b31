"""Transition counts of data sets whose pairs do not fit into memory: A of `count_transitions` by ranges of rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from distill.baselines.counting import TransitionSettings, pairs_by_distance
from distill.data.dataset import Dataset

PAIRS_AT_ONCE = 50_000_000  # some 2.5 GB while they are added up


def divide_rows(purchases: np.ndarray, window: int, most_pairs: int | None = None) -> np.ndarray:
    """Divide the items into ranges, each of one item or of rows that at most `most_pairs` pairs make.

    Args:
        purchases: how often each item was bought [n_items]; 2 · window pairs at most come from each time.
        window: G.
        most_pairs: bound of a range; None: `PAIRS_AT_ONCE`.

    Returns:
        Where the ranges start, and the number of items [ranges + 1].
    """
    pairs_before = np.concatenate([[0], np.cumsum(2 * window * purchases.astype(np.int64))])
    most_pairs = most_pairs or PAIRS_AT_ONCE
    starts = [0]
    while starts[-1] < len(purchases):
        end = int(np.searchsorted(pairs_before, pairs_before[starts[-1]] + most_pairs, side="right")) - 1
        starts.append(max(end, starts[-1] + 1))
    return np.array(starts)


def count_rows(
    dataset: Dataset, settings: TransitionSettings, first: int, end: int, with_validation: bool = False
) -> sp.csr_array:
    """Count the rows of A from `first` to before `end` [end − first, n_items].

    The training part is read once, some users at a time. The counts are those of `count_transitions` but for rounding:
    they are added in another order.
    """
    rows: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for values, offsets in dataset.training_parts(with_validation):
        for earlier, later, weight in pairs_by_distance(values, offsets, settings.window, settings.decay):
            for row, column in ((earlier, later), (later, earlier)):
                places = np.flatnonzero((first <= row) & (row < end))
                rows.append(row[places] - first)
                columns.append(column[places])
                weights.append(weight[places])
    shape = (end - first, dataset.n_items)
    if not rows:
        return sp.csr_array(shape)
    return sp.coo_array((np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape=shape).tocsr()


def count_shards(
    dataset: Dataset, settings: TransitionSettings, starts: np.ndarray, with_validation: bool = False
) -> Iterator[sp.csr_array]:
    """Yield the rows of A by the ranges of `divide_rows`, reading the training part once a range."""
    for first, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        yield count_rows(dataset, settings, first, end, with_validation)
