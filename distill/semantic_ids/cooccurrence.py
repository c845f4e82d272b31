"""Embed items by co-occurrence: truncated SVD of PPMI counts (Levy and Goldberg 2014); join such embeddings and texts.

Only the training part of the data set may be counted.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp

from distill.baselines.counting import count_transitions

Join = Literal["none", "concat", "average"]


def ppmi(counts: sp.csr_array) -> sp.csr_array:
    """Compute `max(0, log(c_ij · total / (r_i · r_j)))` of symmetric counts [n, n]: positive mutual information."""
    entries = counts.tocoo()
    total = np.asarray(counts.sum(1)).ravel()
    row, column = entries.coords
    values = np.log(entries.data * total.sum() / (total[row] * total[column]))
    keep = values > 0
    return sp.coo_array((values[keep], (row[keep], column[keep])), shape=counts.shape).tocsr()


def embed(values: np.ndarray, offsets: np.ndarray, n_items: int, dim: int, window: int, seed: int) -> np.ndarray:
    """Embed items by their co-occurrence in sequences.

    Args:
        values: item numbers of all training sequences, one after the other.
        offsets: start of each sequence [users + 1].
        n_items: catalogue size.
        dim: largest size of an embedding.
        window: items at most this far apart co-occur.
        seed: of the truncated SVD.

    Returns:
        Embeddings [n_items, at most dim] (float32); rows of items that co-occur with others have length 1, all others
        are zero.
    """
    from sklearn.decomposition import TruncatedSVD

    size = max(1, min(dim, n_items - 1))
    matrix = ppmi(count_transitions(values, offsets, n_items, window, 1.0))
    if not matrix.nnz:
        return np.zeros((n_items, size), dtype=np.float32)
    svd = TruncatedSVD(size, n_iter=7, random_state=seed)
    vectors = svd.fit_transform(matrix) / np.sqrt(np.maximum(svd.singular_values_, 1e-12))
    return unit_rows(vectors, np.linalg.norm(vectors, axis=1) > 1e-6)


def unit_rows(vectors: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Scale the rows of vectors [n, dim] to length 1 where `present` [n], to zeros elsewhere."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(present[:, None], vectors / np.maximum(lengths, 1e-12), 0).astype(np.float32)


def join(text: np.ndarray, cooccurring: np.ndarray, how: Join, weight: float) -> tuple[np.ndarray, float]:
    """Join text and co-occurrence embeddings, so that co-occurrence has the share `weight` of the variance.

    Args:
        text: [n, dim].
        cooccurring: by co-occurrence, or of a network over items [n, other]; zero rows are missing: such items keep
            their text.
        how: concat, or average, for which co-occurrence is first rotated towards the text (orthogonal Procrustes).
        weight: from 0 to 1.

    Returns:
        Embeddings (float32) [n, dim + other] or, for the average, [n, dim]; and the factor of the text, for items added
        later.
    """
    present = np.abs(cooccurring).sum(1) > 0
    if present.any():
        cooccurring = np.where(present[:, None], cooccurring - cooccurring[present].mean(0), 0)
    factor = float(np.sqrt(1 - weight) / _spread(text))
    cooccurring = cooccurring * np.sqrt(weight) / _spread(cooccurring)
    if how == "average":
        from scipy.linalg import orthogonal_procrustes

        size = max(text.shape[1], cooccurring.shape[1])
        wide, other = (np.pad(part, ((0, 0), (0, size - part.shape[1]))) for part in (text, cooccurring))
        rotation, _ = orthogonal_procrustes(other[present], (wide - wide.mean(0))[present])
        return (wide * factor + other @ rotation).astype(np.float32)[:, : text.shape[1]], factor
    return np.concatenate([text * factor, cooccurring], axis=1).astype(np.float32), factor


def _spread(x: np.ndarray) -> float:
    """Compute the root of the total variance; 1 if it is 0."""
    return float(np.sqrt(x.var(axis=0, dtype=np.float64).sum())) or 1.0
