"""Counted transitions as a teacher, leave-one-out."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from distill.baselines.counting import Transitions, TransitionSettings, count_transitions, reading_weights
from distill.data.dataset import Dataset, Examples
from distill.data.examples import ragged_range
from distill.ranking import mask_history
from distill.teachers.item_teacher import CHUNK, normalise_rows

POWERS = (0.5, 0.75, 1.0, 1.5, 2.0)
SHARES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7)
RESIDUE = 1e-10  # a count below it was subtracted; what is left is rounding


class TransitionTeacher:
    """The counting baseline `Transitions` as a distribution: scores^power, normalised, mixed with popularity.

    A training example is labelled leave-one-out: as if its user's sequence had ended before the target. The items that
    this user bought from the target on are subtracted from the counts, their row sums and the popularity.
    Implements `ItemTeacher`.

    Args:
        dataset: its training part is counted.
        settings: how transitions are counted and histories are read.
        power: exponent of the scores; above 1 the distribution is sharper.
        share: weight of popularity, so that no item is impossible.
    """

    def __init__(self, dataset: Dataset, settings: TransitionSettings, power: float = 1.0, share: float = 0.1):
        self.settings, self.power, self.share = settings, power, share
        self.values, self.offsets = dataset.training_sequences()
        self.n_items = dataset.n_items
        self.counts = count_transitions(self.values, self.offsets, self.n_items, settings.window, settings.decay)
        self.totals = self.counts.sum(1)
        self.bought = dataset.count_purchases().astype(float)

    @staticmethod
    def tune(dataset: Dataset, exclude_bought: bool, max_users: int = 2000) -> TransitionTeacher:
        """Choose the settings by validation NDCG@10, then power and share by the likelihood of validation targets."""
        teacher = TransitionTeacher(dataset, Transitions.tune(dataset, exclude_bought)[0].settings)
        examples = dataset.examples("valid")
        if len(examples) > max_users:
            rows = np.random.default_rng(0).choice(len(examples), max_users, replace=False)
            examples = examples.take(np.sort(rows))
        target_probs = np.zeros((len(POWERS), len(examples)))
        has_counts = np.zeros(len(examples), bool)
        for start in range(0, len(examples), CHUNK):
            part = examples.take(slice(start, start + CHUNK))
            scores = teacher.scores(part)
            if exclude_bought:
                mask_history(scores, part.histories, 0.0)
            rows = np.arange(start, start + len(part))
            has_counts[rows] = scores.any(1)
            for number, power in enumerate(POWERS):
                target_probs[number, rows] = normalise_rows(scores**power)[rows - start, part.targets]
        popularity = ((teacher.bought + 0.5) / (teacher.bought + 0.5).sum())[examples.targets]
        likelihood = {
            (power, share): np.log(np.where(has_counts, (1 - share) * probs + share * popularity, popularity)).mean()
            for power, probs in zip(POWERS, target_probs, strict=True)
            for share in SHARES
        }
        teacher.power, teacher.share = max(likelihood, key=lambda pair: likelihood[pair])
        return teacher

    def on(self, dataset: Dataset) -> TransitionTeacher:
        """Return a teacher of the same settings that counts another data set."""
        return TransitionTeacher(dataset, self.settings, self.power, self.share)

    def probabilities(self, examples: Examples, exclude_bought: bool) -> np.ndarray:
        """As `ItemTeacher.probabilities`; excluded items keep their share of the popularity."""
        scores = self.scores(examples)
        if exclude_bought:
            mask_history(scores, examples.histories, 0.0)
        share = np.where(scores.any(1), self.share, 1.0)[:, None]
        return (1 - share) * normalise_rows(scores**self.power) + share * self.popularity(examples)

    def scores(self, examples: Examples) -> np.ndarray:
        """Compute `Transitions.scores` as if each user's sequence had ended before the target [n, n_items]."""
        shape = (len(examples), self.n_items)
        reading = reading_weights(examples.histories, self.settings, self.n_items)
        reading.sort_indices()
        row = np.repeat(np.arange(shape[0]), np.diff(reading.indptr))
        keys = row * self.n_items + reading.indices  # ascending
        entry, item, count = self._later_pairs(examples, keys)
        totals = self.totals[reading.indices] - np.bincount(entry, count, minlength=len(keys))
        scale = np.divide(reading.data, np.sqrt(totals.clip(0)), out=np.zeros(len(keys)), where=totals > RESIDUE)
        scores = (sp.csr_array((scale, reading.indices, reading.indptr), shape=shape) @ self.counts).toarray()
        scores -= sp.coo_array((scale[entry] * count, (row[entry], item)), shape=shape).toarray()
        scores[scores < RESIDUE] = 0
        return scores

    def popularity(self, examples: Examples) -> np.ndarray:
        """Normalised purchase counts without the user's purchases from the target on [n, n_items]."""
        first, length = self._counted_part(examples)
        row, place = ragged_range(np.maximum(length - examples.positions, 0))
        items = self.values[first[row] + examples.positions[row] + place]
        later = sp.coo_array((np.ones(len(row)), (row, items)), shape=(len(examples), self.n_items)).toarray()
        return normalise_rows(self.bought - later + 0.5)

    def facts(self) -> dict[str, Any]:
        """Return the settings, the power and the share."""
        return {"teacher": "transitions", **vars(self.settings), "power": self.power, "share": self.share}

    def _counted_part(self, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Find where the sequence of each example's user begins in `values`, and its length; both [n]."""
        first = self.offsets[examples.users]
        return first, self.offsets[examples.users + 1] - first

    def _later_pairs(self, examples: Examples, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """List the counts that the user's items from the target on have added to the rows of A that are read.

        Args:
            examples: n examples.
            keys: example · n_items + item of the rows that are read, ascending.

        Returns:
            Number of the row in `keys`, column of A, and count; an entry for each pair and direction.
        """
        first, length = self._counted_part(examples)
        row, position = ragged_range(np.where(length > examples.positions, length, 0))
        wanted = row * self.n_items + self.values[first[row] + position]
        entry = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        is_read = keys[entry] == wanted
        row, position, entry = row[is_read], position[is_read], entry[is_read]
        parts = []
        for gap in range(1, self.settings.window + 1):
            for other in (position - gap, position + gap):
                later = np.maximum(position, other) >= examples.positions[row]
                keep = np.flatnonzero((other >= 0) & (other < length[row]) & later)
                items = self.values[first[row[keep]] + other[keep]]
                parts.append((entry[keep], items, np.full(len(keep), self.settings.decay ** (gap - 1))))
        entries, items, counts = map(np.concatenate, zip(*parts, strict=True))
        return entries, items, counts
