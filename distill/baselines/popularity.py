"""The popularity baseline."""

from __future__ import annotations

import numpy as np

from distill.data.dataset import Dataset


class Popularity:
    """Score of an item: how often it occurs in the training part."""

    def __init__(self, dataset: Dataset):
        values, _ = dataset.training_sequences()
        self.counts = np.bincount(values, minlength=dataset.n_items).astype(float)

    def scores(self, histories: np.ndarray) -> np.ndarray:
        """The same scores for everybody [users, n_items]."""
        return np.broadcast_to(self.counts, (len(histories), len(self.counts))).copy()
