"""Filters over chunks: the steps of `sources.refine`, with sums over all chunks where a step needs them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from distill.data.out_of_core.chunks import Chunks
from distill.data.sources import Options, Source
from distill.data.sources.refine import report_left_out


@dataclass
class LeftOut:
    """Counts what the filters leave out, by reason, in the order of the filters.

    Attributes:
        origin: where the interactions come from, for messages.
        counts: reason -> [left out, all].
    """

    origin: str
    counts: dict[str, list[int]] = field(default_factory=dict)

    def keep(self, source: Source, keep: np.ndarray, why: str) -> Source:
        """Keep some interactions of a chunk and count the others."""
        self.add(why, len(keep) - int(keep.sum()), len(keep))
        return source if keep.all() else source.take(np.flatnonzero(keep))

    def add(self, why: str, left_out: int, total: int) -> None:
        """Count interactions that were left out."""
        counts = self.counts.setdefault(why, [0, 0])
        counts[0], counts[1] = counts[0] + left_out, counts[1] + total

    def report(self) -> None:
        """Log the counts; afterwards they are zero.

        Raises:
            UserError: a filter has left nothing.
        """
        for why, (left_out, total) in self.counts.items():
            if left_out:
                report_left_out(self.origin, left_out, total, why)
        self.counts = {}


def renumber(source: Source, kept: np.ndarray, items: pa.Table) -> Source:
    """Give the items of a chunk the numbers of a catalogue `items` that has the rows `kept` (ascending) of the old."""
    number = np.full(source.items.num_rows, -1, dtype=np.int32)
    number[kept] = np.arange(len(kept))
    return replace(source, items=items, values=number[source.values])


def k_core(chunks: Chunks, options: Options, left_out: LeftOut) -> np.ndarray:
    """Leave out rare users and items, in rounds over the chunks until nothing changes.

    An item's count falls as soon as a chunk loses it. The order does not matter: the k-core is the only largest set.

    Args:
        chunks: changed on disk.
        options: hold the two thresholds.
        left_out: counts the interactions.

    Returns:
        Interactions of each item that remain [n_items].
    """
    n_items = chunks.items.num_rows
    counts = np.zeros(n_items, dtype=np.int64)
    for source in chunks:
        counts += np.bincount(source.values, minlength=n_items)
    total = int(counts.sum())

    def without_rare(source: Source) -> Source:
        while True:
            enough = (source.lengths >= options.user_core)[source.owners] & (counts >= options.item_core)[source.values]
            if enough.all():
                return source
            counts[:] -= np.bincount(source.values[~enough], minlength=n_items)
            source = source.take(np.flatnonzero(enough))

    before = -1
    while before != counts.sum():
        before = counts.sum()
        chunks.update(without_rare)
    why = f"outside the {options.user_core}-core (items: {options.item_core})"
    left_out.add(why, total - int(counts.sum()), total)
    return counts
