"""Top-k of item scores, with and without the items of the history."""

from __future__ import annotations

import numpy as np

from distill.data.dataset import PAD


def top_items(scores: np.ndarray, k: int) -> np.ndarray:
    """Item numbers of the k highest positive scores, best first, ties by item number [users, k]; -1 for the rest."""
    k = min(k, scores.shape[1])
    part = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(scores, part, axis=1)
    edge = values.min(1)
    split = (scores == edge[:, None]).sum(1) > (values == edge[:, None]).sum(1)  # some of the tied were left out
    for row in np.flatnonzero(split & (edge > 0)):
        above, tied = np.flatnonzero(scores[row] > edge[row]), np.flatnonzero(scores[row] == edge[row])
        part[row] = np.concatenate([above, tied])[:k]
    part = np.sort(part, axis=1)
    values = np.take_along_axis(scores, part, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    lists = np.take_along_axis(part, order, axis=1)
    return np.where(np.take_along_axis(values, order, axis=1) > 0, lists, PAD)


def mask_history(scores: np.ndarray, histories: np.ndarray, value: float) -> None:
    """Set the scores of items in the history to `value`, in place."""
    rows = np.repeat(np.arange(len(histories)), histories.shape[1])
    columns = histories.ravel()
    scores[rows[columns != PAD], columns[columns != PAD]] = value
