"""Lay out examples in rows, and rows in batches; each function does one step of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.data.dataset import PAD


@dataclass(frozen=True)
class Layout:
    """Rows of examples: which items each reads and where its targets are.

    Attributes:
        starts: of each row's items in the data set's values [rows].
        lengths: items read; in one pass the last target is among them [rows].
        first: examples of row r are first[r] to first[r + 1] [rows + 1].
        places: items of the row before each example's target [n].
    """

    starts: np.ndarray
    lengths: np.ndarray
    first: np.ndarray
    places: np.ndarray


def layout_rows(
    users: np.ndarray, positions: np.ndarray, offsets: np.ndarray, longest: int, one_pass: bool, strided: bool = True
) -> Layout:
    """Lay out examples, sorted by user and position, in rows.

    Prefix by prefix, an example is a row: the last `longest` items before its target. In one pass a user is a row, as
    far as histories of all items fit. Later targets are in windows that overlap by half: they have the last `longest`/2
    to `longest` items (`strided`), or each has a row with exactly the last `longest`.

    Args:
        users, positions: of the targets [n].
        offsets: where each user's sequence starts.
        longest: items of history.
        one_pass: see above.
        strided: see above.
    """
    beyond = positions > longest
    if not one_pass:
        window, start = np.arange(len(positions)), np.maximum(positions - longest, 0)
    elif strided:
        half = max(longest // 2, 1)
        window = np.where(beyond, -((longest - positions) // half), 0)
        start = window * half
    else:
        window, start = np.where(beyond, positions, 0), np.where(beyond, positions - longest, 0)
    opens = np.ones(len(users), dtype=bool)
    opens[1:] = (users[1:] != users[:-1]) | (window[1:] != window[:-1])
    first = np.append(np.flatnonzero(opens), len(users))
    places = positions - start
    starts = (offsets[users] + start)[first[:-1]]
    return Layout(starts, places[first[1:] - 1] + one_pass, first, places)


def read_rows(values: np.ndarray, layout: Layout, group: np.ndarray) -> np.ndarray:
    """Read the items of some rows, padded with PAD on the right [rows, items]."""
    column = np.arange(layout.lengths[group].max())
    inside = column < layout.lengths[group][:, None]
    index = np.minimum(layout.starts[group][:, None] + column, len(values) - 1)
    return np.where(inside, values[index], PAD).astype(np.int64, copy=False)  # values may be a data set's int32


def examples_of_rows(layout: Layout, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List the examples of some rows, row by row, and each one's row within the group; both [n]."""
    counts = np.diff(layout.first)[group]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(layout.first[group], counts) + within, np.repeat(np.arange(len(group)), counts)


def bucket_by_length(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Group rows of similar length into batches of row numbers, in random order."""
    order = np.argsort(lengths + 2 * rng.random(len(lengths)), kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def shard_rows(group: np.ndarray, process: int, processes: int, accumulation: int) -> list[np.ndarray]:
    """Return a process's rows of a global batch, one part per accumulation step; parts may be empty.

    Process r takes every `processes`-th row from the r-th on, and accumulation step a every `accumulation`-th of these.
    """
    rows = group[process::processes]
    return [rows[step::accumulation] for step in range(accumulation)]


def sample_position(rows: np.ndarray, weights: np.ndarray, n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one example per row by weight; it takes the sum of the row's weights, all others 0.

    The weighted sum of losses keeps its expectation.

    Args:
        rows: of the examples, ascending [n].
        weights: of the examples, 0 for those not to be drawn [n].
        n_rows: number of rows.
        rng: random generator.

    Returns:
        Weights [n].
    """
    sums = np.bincount(rows, weights, n_rows)
    up_to = np.cumsum(weights) - (np.cumsum(sums) - sums)[rows]  # within the row
    hits = np.flatnonzero((weights > 0) & (up_to > (rng.random(n_rows) * sums)[rows]))
    drawn, first = np.unique(rows[hits], return_index=True)
    sampled = np.zeros(len(weights))
    sampled[hits[first]] = sums[drawn]
    return sampled


def group_by_row(rows: np.ndarray, weights: np.ndarray, n_rows: int) -> np.ndarray:
    """List each row's examples that have a weight, by number, padded with PAD [n_rows, groups].

    At least one group: with sharded weights all processes must call the same layers.
    """
    examples = np.flatnonzero(weights)
    counts = np.bincount(rows[examples], minlength=n_rows)
    column = np.arange(len(examples)) - (np.cumsum(counts) - counts)[rows[examples]]
    groups = np.full((n_rows, max(counts.max(), 1)), PAD)
    groups[rows[examples], column] = examples
    return groups
