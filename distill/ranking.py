"""Top-k of item scores, with and without the items of the history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import scipy.sparse as sp

from distill.data.dataset import PAD

BLOCK = 1 << 14  # items whose products are computed at once: measured the quickest of 2^12, 2^14 and 2^16


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


def top_by_products(
    queries: np.ndarray, vectors: np.ndarray, k: int, excluded: np.ndarray | None = None, block: int = BLOCK
) -> np.ndarray:
    """Rank items by their products with queries, some items at a time; equal products by item number.

    The lists are those of `top_items(queries @ vectors.T, k, -inf)`, in memory for queries x `block` products.

    Args:
        queries: float32 [users, dim].
        vectors: of the items, float32 [n_items, dim].
        k: items wanted.
        excluded: item numbers that are not ranked, -1 for none [users, length]; None: all are ranked.
        block: items at a time.

    Returns:
        Item numbers, best first, -1 where there are no more [users, min(k, n_items)].
    """
    return best_products(products_in_blocks(queries, vectors, excluded, block), len(queries), min(k, len(vectors)))[0]


def products_in_blocks(
    queries: np.ndarray, vectors: np.ndarray, excluded: np.ndarray | None = None, block: int = BLOCK
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first item of each block, and the block's products, -inf where excluded [users, up to block].

    Arguments as `top_by_products`.
    """
    for start in range(0, len(vectors), block):
        products = queries @ vectors[start : start + block].T
        if excluded is not None:
            inside = (excluded >= start) & (excluded < start + products.shape[1])
            mask_history(products, np.where(inside, excluded - start, PAD), -np.inf)
        yield start, products


def best_products(blocks: Iterable[tuple[int, np.ndarray]], users: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep the best of blocks of products.

    Args:
        blocks: from `products_in_blocks`.
        users: number of queries.
        k: items wanted, at most the number of items.

    Returns:
        Item numbers, best first, equals by number, -1 where there are no more, and their products; both [users, k].
    """
    items = np.full((users, k), PAD)
    scores = np.full(items.shape, -np.inf, np.float32)
    for start, products in blocks:
        if start == 0:
            new = top_items(products, k, -np.inf)
            new_scores = scores_of(products, new)
        else:  # few are better than the worst of the list, and none that only equals it comes in
            new, new_scores = _above(products, scores[:, -1:])
            new = np.where(new == PAD, PAD, new + start)
        both, both_scores = np.concatenate([items, new], 1), np.concatenate([scores, new_scores], 1)
        order = np.argsort(-both_scores, axis=1, kind="stable")[:, :k]
        items, scores = np.take_along_axis(both, order, axis=1), np.take_along_axis(both_scores, order, axis=1)
    return np.where(scores > -np.inf, items, PAD), scores


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


def _above(scores: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List the columns with a score above the row's limit, and these scores; padded with -1 and -inf [rows, most]."""
    rows, columns = np.nonzero(scores > limits)
    counts = np.bincount(rows, minlength=len(scores))
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    listed = np.full((len(scores), counts.max(initial=0)), PAD)
    values = np.full(listed.shape, -np.inf, scores.dtype)
    listed[rows, places], values[rows, places] = columns, scores[rows, columns]
    return listed, values


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
