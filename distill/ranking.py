"""Top-k of item scores, with and without the items of the history."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from distill.data.dataset import PAD


def top_items(scores: np.ndarray | sp.csr_array, k: int, above: float = 0.0) -> np.ndarray:
    """Rank items by score; equal scores by item number.

    Args:
        scores: of all items [users, n_items]; sparse: entries that are not stored are never ranked.
        k: items wanted.
        above: only items with a higher score are ranked; −inf for log-probabilities.

    Returns:
        Item numbers, best first, -1 where no more items score above the limit [users, min(k, n_items)].
    """
    k = min(k, scores.shape[1])
    if isinstance(scores, np.ndarray):
        return _top_dense(scores, k, above)
    return _top_sparse(scores.tocsr(), k, above)


def scores_of(scores: np.ndarray, items: np.ndarray, missing: float = -np.inf) -> np.ndarray:
    """Look up the scores of given items.

    Args:
        scores: of all items [users, n_items].
        items: item numbers, -1 for none [users, k].
        missing: the value for -1.

    Returns:
        [users, k].
    """
    return np.where(items == PAD, missing, np.take_along_axis(scores, np.maximum(items, 0), axis=1))


def mask_history(scores: np.ndarray, histories: np.ndarray, value: float) -> None:
    """Set the scores of the history's items to `value`, in place.

    Args:
        scores: of all items [users, n_items].
        histories: item numbers, padded with -1 [users, length].
        value: −inf for log-probabilities, 0 for probabilities and counts.
    """
    rows = np.repeat(np.arange(len(histories)), histories.shape[1])
    columns = histories.ravel()
    scores[rows[columns != PAD], columns[columns != PAD]] = value


def _top_dense(scores: np.ndarray, k: int, above: float) -> np.ndarray:
    top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(scores, top, axis=1)
    lowest = values.min(1)
    # where more items share the lowest score than there is room for, argpartition takes any of them
    tie_cut = (scores == lowest[:, None]).sum(1) > (values == lowest[:, None]).sum(1)
    for row in np.flatnonzero(tie_cut & (lowest > above)):
        higher, tied = np.flatnonzero(scores[row] > lowest[row]), np.flatnonzero(scores[row] == lowest[row])
        top[row] = np.concatenate([higher, tied])[:k]
    top = np.sort(top, axis=1)  # then a stable sort breaks ties by item number
    values = np.take_along_axis(scores, top, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.where(np.take_along_axis(values, order, axis=1) > above, np.take_along_axis(top, order, axis=1), PAD)


def _top_sparse(scores: sp.csr_array, k: int, above: float) -> np.ndarray:
    rows = np.repeat(np.arange(scores.shape[0]), np.diff(scores.indptr))
    order = np.lexsort((scores.indices, -scores.data, rows))
    places = np.arange(len(rows)) - scores.indptr[rows]  # rows keep their extent: place within the row
    ranked = (places < k) & (scores.data[order] > above)
    top = np.full((scores.shape[0], k), PAD)
    top[rows[ranked], places[ranked]] = scores.indices[order][ranked]
    return top
