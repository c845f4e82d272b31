"""The heuristic teachers of the paper's Appendix B: codeword distance and co-occurrence statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from distill.baselines.popularity import Popularity
from distill.data.dataset import Dataset, Examples
from distill.teachers.item_teacher import _normalised, _without_bought


class DistanceTeacher:
    """Appendix B's heuristic distance, equation (18): near to the *target* is likely, whatever the history.

    P(v) ∝ exp(−Σ_i 2^(D−i)·[c_i ≠ target's c_i] / temperature).

    Args:
        codes: of all items [n_items, levels].
        temperature: in units of the last level.
    """

    def __init__(self, codes: np.ndarray, temperature: float = 1.0):
        self.codes, self.temperature = codes, temperature

    def probabilities(self, examples: Examples, hide: bool) -> np.ndarray:
        """As `ItemTeacher.probabilities`."""
        levels = self.codes.shape[1]
        distance = np.zeros((len(examples), len(self.codes)))
        for level in range(levels):
            differs = self.codes[examples.targets, level][:, None] != self.codes[:, level]
            distance += 2.0 ** (levels - 1 - level) * differs
        return _normalised(_without_bought(np.exp(-distance / self.temperature), examples, hide))

    def facts(self) -> dict[str, Any]:
        """Its temperature."""
        return {"teacher": "distance", "temperature": self.temperature}


class StatisticsTeacher:
    """Appendix B's global statistics: what the users who bought the *target* bought, a row of A = MᵀM.

    M is the user-item matrix of the training part. A share of popularity is mixed in, so that nothing is impossible.

    Args:
        dataset: whose training part is counted.
        share: of popularity.
    """

    def __init__(self, dataset: Dataset, share: float = 0.1):
        values, offsets = dataset.training_sequences()
        owner = np.repeat(np.arange(dataset.n_users), np.diff(offsets))
        bought = sp.coo_array((np.ones(len(values)), (owner, values)), shape=(dataset.n_users, dataset.n_items)).tocsr()
        bought.data[:] = 1  # bought or not, however often
        self.together = (bought.T @ bought).tocsr()
        counts = Popularity(dataset).counts + 0.5
        self.popularity, self.share = counts / counts.sum(), share

    def probabilities(self, examples: Examples, hide: bool) -> np.ndarray:
        """As `ItemTeacher.probabilities`."""
        rows = self.together[examples.targets].toarray()
        share = np.where(rows.any(1), self.share, 1.0)[:, None]
        return _normalised(_without_bought((1 - share) * _normalised(rows) + share * self.popularity, examples, hide))

    def facts(self) -> dict[str, Any]:
        """Its share of popularity."""
        return {"teacher": "statistics", "share": self.share}
