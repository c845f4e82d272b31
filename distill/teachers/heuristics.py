"""The heuristic teachers of the paper's Appendix B: codeword distance and co-occurrence statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from distill.baselines.popularity import Popularity
from distill.data.dataset import Dataset, Examples
from distill.teachers.item_teacher import normalise_rows, zero_history


class DistanceTeacher:
    """Appendix B's heuristic distance, equation (18): items near the *target* are likely, whatever the history.

    P(v) ∝ exp(−Σ_i 2^(D−i)·[c_i ≠ target's c_i] / temperature). Implements `ItemTeacher`.

    Args:
        codes: of all items [n_items, levels].
        temperature: in units of the last level.
    """

    def __init__(self, codes: np.ndarray, temperature: float = 1.0):
        self.codes, self.temperature = codes, temperature

    def probabilities(self, examples: Examples, exclude_bought: bool) -> np.ndarray:
        """As `ItemTeacher.probabilities`."""
        levels = self.codes.shape[1]
        distance = np.zeros((len(examples), len(self.codes)))
        for level in range(levels):
            differs = self.codes[examples.targets, level][:, None] != self.codes[:, level]
            distance += 2.0 ** (levels - 1 - level) * differs
        scores = np.exp(-distance / self.temperature)
        if exclude_bought:
            zero_history(scores, examples)
        return normalise_rows(scores)

    def facts(self) -> dict[str, Any]:
        """Return the temperature."""
        return {"teacher": "distance", "temperature": self.temperature}


class StatisticsTeacher:
    """Appendix B's global statistics: the items that users bought who also bought the *target*, a row of A = MᵀM.

    M is the user-item matrix of the training part. A share of popularity is mixed in, so that no item is impossible.
    Implements `ItemTeacher`.

    Args:
        dataset: its training part is counted.
        share: weight of popularity.
    """

    def __init__(self, dataset: Dataset, share: float = 0.1):
        values, offsets = dataset.training_sequences()
        users = np.repeat(np.arange(dataset.n_users), np.diff(offsets))
        bought = sp.coo_array((np.ones(len(values)), (users, values)), shape=(dataset.n_users, dataset.n_items)).tocsr()
        bought.data[:] = 1  # bought or not, however often
        self.bought_together = (bought.T @ bought).tocsr()
        counts = Popularity(dataset).counts + 0.5
        self.popularity, self.share = counts / counts.sum(), share

    def probabilities(self, examples: Examples, exclude_bought: bool) -> np.ndarray:
        """As `ItemTeacher.probabilities`."""
        rows = self.bought_together[examples.targets].toarray()
        share = np.where(rows.any(1), self.share, 1.0)[:, None]
        scores = (1 - share) * normalise_rows(rows) + share * self.popularity
        if exclude_bought:
            zero_history(scores, examples)
        return normalise_rows(scores)

    def facts(self) -> dict[str, Any]:
        """Return the share of popularity."""
        return {"teacher": "statistics", "share": self.share}
