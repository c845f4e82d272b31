"""A transition memory: item-to-item counts beside a student (`student.memory_mixture` mixes them).

Counting takes seconds and no training; `grow` adds new interactions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file

from distill.baselines.counting import TransitionSettings, count_transitions, reading_weights
from distill.data.dataset import PAD, Dataset
from distill.runtime.errors import UserError
from student.loading import check_numbers

FILE = "memory.safetensors"
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
        counts: A of `count_transitions` [n_items, n_items].
        settings: how A was counted and is read.
        weight: w, the counter's share.
        top: how many of its items join the student's beams.
        discount: β, the discount of items that are bought often.
    """

    counts: sp.csr_array
    settings: TransitionSettings
    weight: float = 0.5
    top: int = TOP
    discount: float = 0.0

    @staticmethod
    def of(
        dataset: Dataset, settings: TransitionSettings, with_validation: bool = False, **facts: Any
    ) -> TransitionMemory:
        """Count the training part of a data set, on request with its validation part.

        Args:
            dataset: the data set.
            settings: how to count and to read the counts.
            with_validation: count the validation part too.
            facts: further attributes: weight, top, discount.
        """
        values, offsets = dataset.training_sequences(with_validation)
        counts = count_transitions(values, offsets, dataset.n_items, settings.window, settings.decay)
        return TransitionMemory(counts, settings, **facts)

    @cached_property
    def familiarity(self) -> np.ndarray:
        """log(1 + d(v)), d(v) being the sum of an item's counts [n_items]."""
        return np.log1p(np.asarray(self.counts.sum(1), dtype=float))

    @cached_property
    def matrix(self) -> sp.csr_array:
        """N = diag(rowsum^−½) A, as in `Transitions` [n_items, n_items]."""
        total = np.asarray(self.counts.sum(1), dtype=float)
        scale = np.divide(1, np.sqrt(total), out=np.zeros_like(total), where=total > 0)
        return (sp.diags_array(scale) @ self.counts).tocsr()

    def grow(self, sequences: Sequence[Sequence[int]], new: Sequence[int]) -> TransitionMemory:
        """Add new interactions; the result is the same as if all had been counted at once.

        Args:
            sequences: of the users with new interactions, item numbers in time order; the last `window` old items of a
                user are enough.
            new: how many items at the end of each sequence have not been counted yet.

        Raises:
            UserError: an item outside the catalogue, more new items than a sequence has.
        """
        n_items, settings = self.counts.shape[0], self.settings
        rows = [np.asarray(row, dtype=np.int64) for row in sequences]
        for user, (row, count) in enumerate(zip(rows, new, strict=True)):
            if len(row) and not 0 <= row.min() <= row.max() < n_items:
                raise UserError(f"Sequence {user} names an item outside the catalogue of {n_items} items.")
            if not 0 <= count <= len(row):
                raise UserError(f"Sequence {user} has {len(row)} items, {count} of them cannot be new.")

        def count(parts: list[np.ndarray]) -> sp.csr_array:
            offsets = np.cumsum([0, *map(len, parts)])
            values = np.concatenate([*parts, np.zeros(0, np.int64)])
            return count_transitions(values, offsets, n_items, settings.window, settings.decay)

        old = [row[: len(row) - n_new] for row, n_new in zip(rows, new, strict=True)]
        counts = (self.counts + count(rows) - count(old)).tocsr()
        counts.data[np.abs(counts.data) < 1e-12] = 0  # rounding errors of differences that are zero
        counts.eliminate_zeros()
        return dataclasses.replace(self, counts=counts)

    def probabilities(self, histories: np.ndarray, exclude_bought: bool = True) -> sp.csr_array:
        """Compute the counter's distribution over items after histories.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            exclude_bought: no probability for items of the history.

        Returns:
            Sparse [users, n_items]; a row sums to 1, or is empty where the counter knows no transition.
        """
        scores = (reading_weights(histories, self.settings, self.counts.shape[0]) @ self.matrix).tocsr()
        if exclude_bought:
            rows, places = np.nonzero(histories != PAD)
            bought = sp.coo_array((np.ones(len(rows)), (rows, histories[rows, places])), shape=scores.shape)
            scores = (scores - scores * (bought.tocsr() > 0)).tocsr()
            scores.eliminate_zeros()
        total = scores.sum(1)
        scores = (sp.diags_array(np.divide(1, total, out=np.zeros_like(total), where=total > 0)) @ scores).tocsr()
        scores.sort_indices()
        return scores

    def facts(self) -> dict[str, Any]:
        """Return what the student's config.json holds under "memory"."""
        return {**asdict(self.settings), "weight": self.weight, "top": self.top, "discount": self.discount}

    def save(self, folder: Path) -> None:
        """Write the counts; `facts` belong into the student's config.json."""
        counts = self.counts
        save_file({"values": counts.data, "items": counts.indices, "offsets": counts.indptr}, folder / FILE)

    @staticmethod
    def load(folder: Path, facts: dict[str, Any]) -> TransitionMemory:
        """Read what `save` wrote, with the `facts` of the student's config.json."""
        facts = dict(facts)
        weight, top, discount = facts.pop("weight"), facts.pop("top"), facts.pop("discount", 0.0)
        check_numbers({"weight": weight, "top": top, "discount": discount} | facts, BOUNDS, folder / "config.json")
        arrays = load_file(folder / FILE)
        n_items = len(arrays["offsets"]) - 1
        counts = sp.csr_array((arrays["values"], arrays["items"], arrays["offsets"]), shape=(n_items, n_items))
        counts.check_format(full_check=True)  # numbers out of range would be read beyond the arrays
        if not np.isfinite(counts.data).all():
            raise UserError(f"{folder / FILE} is damaged: a count is NaN or infinite.")
        return TransitionMemory(counts, TransitionSettings(**facts), weight, top, discount)
