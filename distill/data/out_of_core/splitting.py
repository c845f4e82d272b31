"""Splits of chunks: moments for all users from shares of the interactions, and withheld items."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from distill.data.out_of_core.chunks import Chunks
from distill.data.sources import Source
from distill.data.splits import (
    cut_positions,
    empty_part,
    format_time,
    has_targets,
    leave_one_out,
    name_empty_part,
)
from distill.data.withholding import check_targets, mark_remaining
from distill.runtime.errors import UserError
from distill.runtime.logs import log

BINS = 1 << 16


def moments_of_cut(chunks: Chunks, valid_from: float, test_from: float) -> tuple[int, int]:
    """Compute the moments where validation and test begin, in seconds; arguments as `splits.cut_by_time`.

    Raises:
        UserError: there are no times, or a part would have no target.
    """
    if not chunks.has_times:
        raise UserError(f"{chunks.origin}: there are no times to cut; use the split leave_one_out.")
    spans = [span for span in chunks.map(time_span) if span]
    n, first, last = sum(span[0] for span in spans), min(span[1] for span in spans), max(span[2] for span in spans)
    moments = tuple(
        order_statistic(chunks, min(int(cut * n), n - 1), first, last) if 0 < cut < 1 else int(cut)
        for cut in (valid_from, test_from)
    )
    has_target = np.zeros(3, dtype=bool)
    for filled in chunks.map(partial(targets_of_cut, moments=moments)):
        has_target |= filled
    part = name_empty_part(has_target)
    if part:
        raise empty_part(part, moments, first, last)
    log.info(f"global_cut: validation from {format_time(moments[0])}, test from {format_time(moments[1])}")
    return moments


def time_span(source: Source) -> tuple[int, int, int] | None:
    """Return the number of a chunk's interactions, the first time and the last; None: it is empty."""
    return (len(source.times), int(source.times.min()), int(source.times.max())) if len(source.times) else None


def targets_of_cut(source: Source, moments: tuple[int, int]) -> np.ndarray:
    """Tell whether a chunk has a target in training, validation and test [3] (bool)."""
    return has_targets(cut_positions(source.times, source.offsets, moments), source.lengths)


def order_statistic(chunks: Chunks, rank: int, low: int, high: int) -> int:
    """Find the time that has `rank` earlier or equal ones before it in time order, by histograms of ever finer bins.

    Args:
        chunks: the interactions.
        rank: from 0.
        low, high: the first and the last time.
    """
    while low < high:
        width = (high - low) // BINS + 1
        counts = np.zeros(BINS, dtype=np.int64)
        for histogram in chunks.map(partial(count_times, low=low, high=high, width=width)):
            counts += histogram
        before = np.cumsum(counts)
        place = int(np.searchsorted(before, rank, side="right"))
        rank -= int(before[place] - counts[place])
        low, high = low + place * width, min(high, low + (place + 1) * width - 1)
    return low


def count_times(source: Source, low: int, high: int, width: int) -> np.ndarray:
    """Count a chunk's times from `low` to `high` in bins of a width [BINS]."""
    times = source.times[(source.times >= low) & (source.times <= high)]
    distances = (times - np.int64(low)).view(np.uint64)  # exact also where int64 overflows
    return np.bincount((distances // np.uint64(width)).astype(np.int64), minlength=BINS)


def remove_withheld(chunks: Chunks, moments: tuple[int, int] | None, withheld: np.ndarray) -> None:
    """Remove withheld items from the training part of every sequence.

    Args:
        chunks: changed.
        moments: where validation and test begin; None: leave-one-out.
        withheld: whether each item is withheld [n_items].

    Raises:
        UserError: training, validation or test would have no target left.
    """
    has_target = np.zeros(3, dtype=bool)
    removed = interactions = users = 0
    for summary in chunks.update(partial(without_withheld, moments=moments, withheld=withheld)):
        has_target |= summary.has_target
        removed, interactions = removed + summary.removed, interactions + summary.interactions
        users += summary.users
    check_targets(has_target, withheld)
    log.info(
        f"withheld {withheld.sum():,} of {len(withheld):,} items: left out {removed:,} of {interactions:,} "
        f"interactions and {users:,} users with nothing else to train on"
    )


@dataclass(frozen=True)
class Withheld:
    """What a chunk loses with the withheld items.

    Attributes:
        has_target: whether a target of training, validation and test remains [3] (bool).
        removed, interactions: interactions that are removed, of how many.
        users: users that are left out.
    """

    has_target: np.ndarray
    removed: int
    interactions: int
    users: int


def without_withheld(source: Source, moments: tuple[int, int] | None, withheld: np.ndarray) -> tuple[Source, Withheld]:
    """Remove withheld items from a chunk; arguments as `remove_withheld`."""
    if moments is None:
        ends, min_train = leave_one_out(source.offsets), 1
    else:
        ends, min_train = cut_positions(source.times, source.offsets, moments), 0
    keep, new_ends, lengths = mark_remaining(source.values, source.offsets, ends, withheld, min_train)
    removed, users = int((~keep).sum()), len(source.user_ids) - len(lengths)
    summary = Withheld(has_targets(new_ends, lengths), removed, len(keep), users)
    return (source if keep.all() else source.take(np.flatnonzero(keep))), summary
