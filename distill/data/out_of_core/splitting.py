"""Splits of chunks: moments for all users from shares of the interactions, and withheld items."""

from __future__ import annotations

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
    n = sum(len(source.values) for source in chunks)
    filled = [source.times for source in chunks if len(source.times)]
    first, last = min(int(times.min()) for times in filled), max(int(times.max()) for times in filled)
    moments = tuple(
        order_statistic(chunks, min(int(cut * n), n - 1), first, last) if 0 < cut < 1 else int(cut)
        for cut in (valid_from, test_from)
    )
    has_target = np.zeros(3, dtype=bool)
    for source in chunks:
        has_target |= has_targets(cut_positions(source.times, source.offsets, moments), source.lengths)
    part = name_empty_part(has_target)
    if part:
        raise empty_part(part, moments, first, last)
    log.info(f"global_cut: validation from {format_time(moments[0])}, test from {format_time(moments[1])}")
    return moments


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
        for source in chunks:
            times = source.times[(source.times >= low) & (source.times <= high)]
            distances = (times - np.int64(low)).view(np.uint64)  # exact also where int64 overflows
            counts += np.bincount((distances // np.uint64(width)).astype(np.int64), minlength=BINS)
        before = np.cumsum(counts)
        place = int(np.searchsorted(before, rank, side="right"))
        rank -= int(before[place] - counts[place])
        low, high = low + place * width, min(high, low + (place + 1) * width - 1)
    return low


def remove_withheld(chunks: Chunks, moments: tuple[int, int] | None, withheld: np.ndarray) -> None:
    """Remove withheld items from the training part of every sequence.

    Args:
        chunks: changed on disk.
        moments: where validation and test begin; None: leave-one-out.
        withheld: whether each item is withheld [n_items].

    Raises:
        UserError: training, validation or test would have no target left.
    """
    has_target = np.zeros(3, dtype=bool)
    counts = {"removed": 0, "interactions": 0, "users": 0}

    def without_withheld(source: Source) -> Source:
        by_time = moments is not None
        ends = cut_positions(source.times, source.offsets, moments) if by_time else leave_one_out(source.offsets)
        keep, new_ends, lengths = mark_remaining(source.values, source.offsets, ends, withheld, 0 if by_time else 1)
        has_target[:] |= has_targets(new_ends, lengths)
        counts["removed"] += int((~keep).sum())
        counts["interactions"] += len(keep)
        counts["users"] += len(source.user_ids) - len(lengths)
        return source if keep.all() else source.take(np.flatnonzero(keep))

    chunks.update(without_withheld)
    check_targets(has_target, withheld)
    log.info(
        f"withheld {withheld.sum():,} of {len(withheld):,} items: left out {counts['removed']:,} of "
        f"{counts['interactions']:,} interactions and {counts['users']:,} users with nothing else to train on"
    )
