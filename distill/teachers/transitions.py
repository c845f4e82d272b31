"""The transition counter as a teacher, leave-one-out."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from distill.baselines.counting import Transitions, TransitionSettings, count_transitions, reading_weights
from distill.data.dataset import Dataset, Examples
from distill.ranking import mask_history
from distill.teachers.item_teacher import CHUNK, _normalised, _ragged

POWERS = (0.5, 0.75, 1.0, 1.5, 2.0)


SHARES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7)


RESIDUE = 1e-10  # what rounding leaves of a count that was taken out


class TransitionTeacher:
    """The counting floor as a distribution: scores^power, normalised, mixed with popularity.

    A training example is labelled leave-one-out: as if its user's sequence had ended before the target. What that user
    bought from the target on is taken out of the counts, their row sums and the popularity.

    Args:
        dataset: whose training part is counted.
        settings: how it is counted and read.
        power: of the scores; above 1 sharper.
        share: of popularity, so that nothing is impossible.
    """

    def __init__(self, dataset: Dataset, settings: TransitionSettings, power: float = 1.0, share: float = 0.1):
        self.settings, self.power, self.share = settings, power, share
        self.values, self.offsets = dataset.training_sequences()
        self.n_items = dataset.n_items
        self.counts = count_transitions(self.values, self.offsets, self.n_items, settings.window, settings.decay)
        self.totals = self.counts.sum(1)
        self.bought = np.bincount(self.values, minlength=self.n_items).astype(float)

    @staticmethod
    def tune(dataset: Dataset, hide: bool, max_users: int = 2000) -> TransitionTeacher:
        """Settings by validation NDCG@10; then power and share by the likelihood of validation targets."""
        teacher = TransitionTeacher(dataset, Transitions.tune(dataset, hide)[0].settings)
        examples = dataset.examples("valid")
        if len(examples) > max_users:
            rows = np.random.default_rng(0).choice(len(examples), max_users, replace=False)
            examples = examples.take(np.sort(rows))
        own = np.zeros((len(POWERS), len(examples)))  # of the targets
        found = np.zeros(len(examples), bool)  # whether the counts say anything
        for start in range(0, len(examples), CHUNK):
            part = examples.take(slice(start, start + CHUNK))
            scores = teacher.scores(part)
            if hide:
                mask_history(scores, part.histories, 0.0)
            rows = np.arange(start, start + len(part))
            found[rows] = scores.any(1)
            for number, power in enumerate(POWERS):
                own[number, rows] = _normalised(scores**power)[rows - start, part.targets]
        popularity = ((teacher.bought + 0.5) / (teacher.bought + 0.5).sum())[examples.targets]
        likelihood = {
            (power, share): np.log(np.where(found, (1 - share) * chance + share * popularity, popularity)).mean()
            for power, chance in zip(POWERS, own, strict=True)
            for share in SHARES
        }
        teacher.power, teacher.share = max(likelihood, key=likelihood.get)
        return teacher

    def on(self, dataset: Dataset) -> TransitionTeacher:
        """The same settings, other counts."""
        return TransitionTeacher(dataset, self.settings, self.power, self.share)

    def probabilities(self, examples: Examples, hide: bool) -> np.ndarray:
        """As `ItemTeacher.probabilities`; hidden items keep their share of the popularity."""
        scores = self.scores(examples)
        if hide:
            mask_history(scores, examples.histories, 0.0)
        share = np.where(scores.any(1), self.share, 1.0)[:, None]
        return (1 - share) * _normalised(scores**self.power) + share * self.popularity(examples)

    def scores(self, examples: Examples) -> np.ndarray:
        """What `Transitions.scores` would be, had each user's sequence ended before the target [n, n_items]."""
        shape = (len(examples), self.n_items)
        read = reading_weights(examples.histories, self.settings, self.n_items)
        read.sort_indices()
        row = np.repeat(np.arange(shape[0]), np.diff(read.indptr))
        keys = row * self.n_items + read.indices  # ascending
        place, other, weight = self._own_pairs(examples, keys)
        left = self.totals[read.indices] - np.bincount(place, weight, minlength=len(keys))
        scale = np.divide(read.data, np.sqrt(left.clip(0)), out=np.zeros(len(keys)), where=left > RESIDUE)
        scores = (sp.csr_array((scale, read.indices, read.indptr), shape=shape) @ self.counts).toarray()
        scores -= sp.coo_array((scale[place] * weight, (row[place], other)), shape=shape).toarray()
        scores[scores < RESIDUE] = 0
        return scores

    def popularity(self, examples: Examples) -> np.ndarray:
        """How often each item is bought, the user's purchases from the target on taken out, normalised [n, n_items]."""
        first, length = self._own(examples)
        row, back = _ragged(np.maximum(length - examples.positions, 0))
        items = self.values[first[row] + examples.positions[row] + back]
        own = sp.coo_array((np.ones(len(row)), (row, items)), shape=(len(examples), self.n_items)).toarray()
        return _normalised(self.bought - own + 0.5)

    def facts(self) -> dict[str, Any]:
        """Settings, power and share."""
        return {"teacher": "transitions", **vars(self.settings), "power": self.power, "share": self.share}

    def _own(self, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Where each example's user begins in `values`, and how many of the user's items were counted; both [n]."""
        first = self.offsets[examples.users]
        return first, self.offsets[examples.users + 1] - first

    def _own_pairs(self, examples: Examples, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The user's own counts that a sequence ending before the target would lack, in rows of A that are read.

        Args:
            examples: n examples.
            keys: example · n_items + item of the rows that are read, ascending.

        Returns:
            Place of the row in `keys`, column, and count; one entry a pair and direction.
        """
        first, length = self._own(examples)
        row, here = _ragged(np.where(length > examples.positions, length, 0))
        wanted = row * self.n_items + self.values[first[row] + here]
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        read = keys[place] == wanted
        row, here, place = row[read], here[read], place[read]
        parts = []
        for gap in range(1, self.settings.window + 1):
            for there in (here - gap, here + gap):
                late = np.maximum(here, there) >= examples.positions[row]
                keep = np.flatnonzero((there >= 0) & (there < length[row]) & late)
                others = self.values[first[row[keep]] + there[keep]]
                parts.append((place[keep], others, np.full(len(keep), self.settings.decay ** (gap - 1))))
        places, others, weights = map(np.concatenate, zip(*parts, strict=True))
        return places, others, weights
