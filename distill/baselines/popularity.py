"""The popularity baseline."""

from __future__ import annotations

import numpy as np

from distill.data.dataset import Dataset


class Popularity:
    """Score every item by the number of its interactions in the training part, the same for all users."""

    def __init__(self, dataset: Dataset):
        self.counts = dataset.count_purchases().astype(float)

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return len(self.counts)

    def scores(self, histories: np.ndarray) -> np.ndarray:
        """As `ItemScorer.scores` [users, n_items]."""
        return np.broadcast_to(self.counts, (len(histories), len(self.counts))).copy()
