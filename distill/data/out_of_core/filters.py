"""Filters over chunks: the steps of `sources.refine`, with sums over all chunks where a step needs them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from distill.data.out_of_core.chunks import Chunks, unnamed_items
from distill.data.sources import Options, Source
from distill.data.sources.refine import repeated, report_left_out

Duplicates = Literal["keep", "exact", "first"]
ItemCounts = tuple[np.ndarray, np.ndarray]  # items, ascending, and interactions of each
LeftOutCounts = dict[str, list[int]]  # reason -> [left out, all]


@dataclass
class LeftOut:
    """Counts what the filters leave out, by reason, in the order of the filters.

    Attributes:
        origin: where the interactions come from, for messages.
        counts: reason -> [left out, all].
    """

    origin: str
    counts: LeftOutCounts = field(default_factory=dict)

    def keep(self, source: Source, keep: np.ndarray, why: str) -> Source:
        """Keep some interactions of a chunk and count the others."""
        self.add(why, len(keep) - int(keep.sum()), len(keep))
        return source if keep.all() else source.take(np.flatnonzero(keep))

    def add(self, why: str, left_out: int, total: int) -> None:
        """Count interactions that were left out."""
        counts = self.counts.setdefault(why, [0, 0])
        counts[0], counts[1] = counts[0] + left_out, counts[1] + total

    def add_all(self, counts: LeftOutCounts) -> None:
        """Add the counts of a chunk."""
        for why, (left_out, total) in counts.items():
            self.add(why, left_out, total)

    def report(self) -> None:
        """Log the counts; afterwards they are zero.

        Raises:
            UserError: a filter has left nothing.
        """
        for why, (left_out, total) in self.counts.items():
            if left_out:
                report_left_out(self.origin, left_out, total, why)
        self.counts = {}


def refine(source: Source, blank: np.ndarray, duplicates: Duplicates) -> tuple[Source, LeftOutCounts]:
    """Leave out items that have no text, and repetitions; returns the rest of the chunk, and the counts.

    Args:
        source: a chunk.
        blank: whether each item has no text and is left out [n_items].
        duplicates: which repetitions to leave out.
    """
    left_out = LeftOut(source.origin)
    if blank.any():
        why = f"with {blank.sum():,} items that have no text"
        source = renumber(left_out.keep(source, ~blank[source.values], why), np.flatnonzero(~blank))
    if duplicates != "keep":
        source = left_out.keep(source, ~repeated(source, duplicates), f"repeated ({duplicates})")
    return source, left_out.counts


def renumber(source: Source, kept: np.ndarray) -> Source:
    """Give the items of a chunk the numbers of a catalogue that has the rows `kept` (ascending) of the old one."""
    number = np.full(source.items.num_rows, -1, dtype=np.int32)
    number[kept] = np.arange(len(kept))
    return replace(source, items=unnamed_items(len(kept)), values=number[source.values])


def renumbered(source: Source, kept: np.ndarray) -> tuple[Source, None]:
    """Change a chunk as `renumber`; there is nothing to sum up."""
    return renumber(source, kept), None


def k_core(chunks: Chunks, options: Options, left_out: LeftOut) -> np.ndarray:
    """Leave out rare users and items, in rounds over the chunks until nothing changes.

    The counts of a round may be older than what other chunks have lost since: they are never too small, so nothing is
    left out that another order would keep. The k-core is the only largest set.

    Args:
        chunks: changed.
        options: hold the two thresholds.
        left_out: counts the interactions.

    Returns:
        Interactions of each item that remain [n_items].
    """
    counts = np.zeros(chunks.items.num_rows, dtype=np.int64)
    for items, numbers in chunks.map(count_items):
        counts[items] += numbers
    total = int(counts.sum())
    before = -1
    while before != counts.sum():
        before = counts.sum()
        # chunks that are changed in this process see at once what those before them have lost
        for items, numbers in chunks.update(partial(without_rare, counts=counts, options=options)):
            counts[items] -= numbers
    why = f"outside the {options.user_core}-core (items: {options.item_core})"
    left_out.add(why, total - int(counts.sum()), total)
    return counts


def count_items(source: Source) -> ItemCounts:
    """Count a chunk's interactions by item; returns the items that have some, and how many."""
    return _nonzero(np.bincount(source.values, minlength=source.items.num_rows))


def without_rare(source: Source, counts: np.ndarray, options: Options) -> tuple[Source, ItemCounts]:
    """Leave out a chunk's rare users and items until nothing changes.

    Args:
        source: the chunk.
        counts: interactions of each item in all chunks, not changed here [n_items].
        options: hold the two thresholds.

    Returns:
        The rest, and the lost interactions as `count_items`.
    """
    lost = np.zeros_like(counts)
    while True:
        is_common = counts - lost >= options.item_core
        enough = (source.lengths >= options.user_core)[source.owners] & is_common[source.values]
        if enough.all():
            return source, _nonzero(lost)
        lost += np.bincount(source.values[~enough], minlength=len(counts))
        source = source.take(np.flatnonzero(enough))


def _nonzero(counts: np.ndarray) -> ItemCounts:
    items = np.flatnonzero(counts)
    return items, counts[items]


def without_short(source: Source, min_length: int) -> tuple[Source, None]:
    """Leave out a chunk's users with fewer interactions."""
    is_long = source.lengths >= min_length
    return (source if is_long.all() else source.take(np.flatnonzero(is_long[source.owners]))), None


@dataclass(frozen=True)
class ShortUsers:
    """Users of a chunk with too few interactions.

    Attributes:
        count, users: how many they are, of how many users.
        first: the first of them, as the chunk names users, and the interactions of this one; None: there is none.
    """

    count: int
    users: int
    first: tuple[Any, int] | None


def find_short(source: Source, min_length: int) -> ShortUsers:
    """Find a chunk's users with fewer interactions."""
    short = np.flatnonzero(source.lengths < min_length)
    first = (source.user_ids[int(short[0])].as_py(), int(source.lengths[short[0]])) if len(short) else None
    return ShortUsers(len(short), len(source.lengths), first)


def sizes(source: Source) -> tuple[int, int]:
    """Count a chunk's users and interactions."""
    return len(source.lengths), len(source.values)
