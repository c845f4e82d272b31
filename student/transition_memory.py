"""A transition memory: item-to-item counts beside a student (`student.memory_mixture` mixes them).

Counting takes seconds and no training; `grow` adds new interactions, at a cost that follows their number.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from distill.baselines.count_shards import count_shards, divide_rows
from distill.baselines.counting import TransitionSettings, count_transitions, pairs_by_distance, reading_weights
from distill.data.dataset import PAD, Dataset
from distill.runtime.errors import UserError
from distill.runtime.logs import progress_bar
from student.count_files import map_shards, write_shards
from student.count_table import CountTable
from student.loading import check_numbers

BOUNDS = {
    **{name: (float, 0, 1) for name in ("weight", "decay", "recency")},
    **{name: (int, 1, 2**31) for name in ("top", "window", "last")},
    "discount": (float, 0, 1000),
}
TOP = 50  # items of the counter that join the beams


@dataclass(frozen=True)
class TransitionMemory:
    """A counter of transitions and its share in the mixture.

    Attributes:
        table: A of `count_transitions` [n_items, n_items]; a plain matrix is taken too, and made a table.
        settings: how A was counted and is read.
        weight: w, the counter's share.
        top: how many of its items join the student's beams.
        discount: β, the discount of items that are bought often.
    """

    table: CountTable | sp.csr_array
    settings: TransitionSettings
    weight: float = 0.5
    top: int = TOP
    discount: float = 0.0

    def __post_init__(self) -> None:
        """Make a plain matrix a table."""
        if not isinstance(self.table, CountTable):
            object.__setattr__(self, "table", CountTable([self.table]))

    @staticmethod
    def of(
        dataset: Dataset,
        settings: TransitionSettings,
        with_validation: bool = False,
        scratch: Path | None = None,
        **facts: Any,
    ) -> TransitionMemory:
        """Count the training part of a data set, on request with its validation part.

        More pairs than `count_shards.PAIRS_AT_ONCE` are counted in shards of rows.

        Args:
            dataset: the data set.
            settings: how to count and to read the counts.
            with_validation: count the validation part too.
            scratch: an existing folder in which the shards are written one by one, and mapped; it must stay as long as
                the memory does. None: all shards are in memory.
            facts: further attributes: weight, top, discount.
        """
        starts = divide_rows(dataset.count_purchases(with_validation), settings.window)
        n_shards = len(starts) - 1
        if n_shards <= 1:
            values, offsets = dataset.training_sequences(with_validation)
            counts = count_transitions(values, offsets, dataset.n_items, settings.window, settings.decay)
            return TransitionMemory(counts, settings, **facts)
        shards = count_shards(dataset, settings, starts, with_validation)
        if scratch is not None:
            folder = Path(tempfile.mkdtemp(dir=scratch))
            write_shards(progress_bar(shards, desc="transitions", total=n_shards), n_shards, folder)
            shards = map_shards(folder)
        return TransitionMemory(CountTable(list(shards)), settings, **facts)

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return self.table.n_items

    @property
    def counts(self) -> sp.csr_array:
        """A as one matrix [n_items, n_items]."""
        return self.table.whole()

    def familiarity(self, items: np.ndarray | None = None) -> np.ndarray:
        """Compute log(1 + d(v)) of items, or of all; d(v) is the sum of an item's counts [as `items`, or n_items]."""
        return np.log1p(self.table.sums if items is None else self.table.sums[items])

    def _normalised_rows(self, items: np.ndarray) -> sp.csr_array:
        """Rows of N = diag(rowsum^−½) A, as in `Transitions` [items, n_items]."""
        total = self.table.sums[items]
        scale = np.divide(1, np.sqrt(total), out=np.zeros_like(total), where=total > 0)
        rows = self.table.rows(items)
        return sp.csr_array((rows.data * np.repeat(scale, np.diff(rows.indptr)), rows.indices, rows.indptr), rows.shape)

    def grow(self, sequences: Sequence[Sequence[int]], new: Sequence[int]) -> TransitionMemory:
        """Add new interactions; the result is the same as if all had been counted at once.

        Args:
            sequences: of the users with new interactions, item numbers in time order; the last `window` old items of a
                user are enough.
            new: how many items at the end of each sequence have not been counted yet.

        Raises:
            UserError: an item outside the catalogue, more new items than a sequence has.
        """
        rows = [np.asarray(row, dtype=np.int64) for row in sequences]
        for user, (row, count) in enumerate(zip(rows, new, strict=True)):
            if len(row) and not 0 <= row.min() <= row.max() < self.n_items:
                raise UserError(f"Sequence {user} names an item outside the catalogue of {self.n_items} items.")
            if not 0 <= count <= len(row):
                raise UserError(f"Sequence {user} has {len(row)} items, {count} of them cannot be new.")
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        offsets = np.append(0, lengths.cumsum())
        is_new = np.repeat(offsets[1:], lengths) - np.arange(offsets[-1]) <= np.repeat(new, lengths)
        values = np.concatenate([*rows, np.zeros(0, np.int64)])
        pairs = pairs_by_distance(values, offsets, self.settings.window, self.settings.decay, is_new)
        earlier, later, weights = map(np.concatenate, zip(*pairs, strict=True))
        if not len(weights):
            return self
        both_ways = np.append(earlier, later), np.append(later, earlier), np.append(weights, weights)
        return dataclasses.replace(self, table=self.table.add(*both_ways))

    def probabilities(self, histories: np.ndarray, exclude_bought: bool = True) -> sp.csr_array:
        """Compute the counter's distribution over items after histories.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            exclude_bought: no probability for items of the history.

        Returns:
            Sparse [users, n_items]; a row sums to 1, or is empty where the counter knows no transition.
        """
        weights = reading_weights(histories, self.settings, self.n_items)
        items, place = np.unique(weights.indices, return_inverse=True)  # only their rows are read
        weights = sp.csr_array((weights.data, place, weights.indptr), shape=(len(histories), len(items)))
        scores = (weights @ self._normalised_rows(items)).tocsr()
        scores.sort_indices()  # otherwise the differences below take arrays as long as the catalogue
        if exclude_bought:
            rows, places = np.nonzero(histories != PAD)
            bought = sp.coo_array((np.ones(len(rows)), (rows, histories[rows, places])), shape=scores.shape)
            scores = (scores - scores * (bought.tocsr() > 0)).tocsr()
            scores.eliminate_zeros()
        total = scores.sum(1)
        scores.data *= np.repeat(np.divide(1, total, out=np.zeros_like(total), where=total > 0), np.diff(scores.indptr))
        return scores

    def facts(self) -> dict[str, Any]:
        """Return what the student's config.json holds under "memory"."""
        return {**asdict(self.settings), "weight": self.weight, "top": self.top, "discount": self.discount}

    def save(self, folder: Path) -> None:
        """Write the counts; `facts` belong into the student's config.json."""
        shards = self.table.shards()
        write_shards(shards, len(shards), folder)

    @staticmethod
    def load(folder: Path, facts: dict[str, Any]) -> TransitionMemory:
        """Map what `save` wrote, with the `facts` of the student's config.json."""
        facts = dict(facts)
        weight, top, discount = facts.pop("weight"), facts.pop("top"), facts.pop("discount", 0.0)
        check_numbers({"weight": weight, "top": top, "discount": discount} | facts, BOUNDS, folder / "config.json")
        return TransitionMemory(CountTable(map_shards(folder)), TransitionSettings(**facts), weight, top, discount)
