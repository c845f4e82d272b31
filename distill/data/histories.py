"""Padded histories."""

from __future__ import annotations

import numpy as np

from distill.data.dataset import PAD


def last_items(histories: np.ndarray, limit: int) -> np.ndarray:
    """Keep the last items of each history.

    Args:
        histories: item numbers, oldest first, padded with -1 on the right [users, length].
        limit: how many items to keep.

    Returns:
        The same, padded on the right [users, at most limit].
    """
    first = np.maximum((histories != PAD).sum(1) - limit, 0)
    width = min(histories.shape[1], limit)
    place = np.minimum(first[:, None] + np.arange(width), histories.shape[1] - 1)
    return np.take_along_axis(histories, place, axis=1)
