"""What is bought together, as item embeddings: truncated SVD of PPMI counts (Levy and Goldberg 2014).

Text alone does not know it. Only the training part of the data set may be counted.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp

from distill.baselines.counting import count_transitions

Join = Literal["none", "concat", "average"]


def ppmi(counts: sp.csr_array) -> sp.csr_array:
    """Positive pointwise mutual information of symmetric counts [n, n]: `max(0, log(c_ij · total / (r_i · r_j)))`."""
    found = counts.tocoo()
    total = np.asarray(counts.sum(1)).ravel()
    row, column = found.coords
    values = np.log(found.data * total.sum() / (total[row] * total[column]))
    keep = values > 0
    return sp.coo_array((values[keep], (row[keep], column[keep])), shape=counts.shape).tocsr()


def embed(values: np.ndarray, offsets: np.ndarray, n_items: int, dim: int, window: int, seed: int) -> np.ndarray:
    """Embeddings [n_items, at most dim] (float32) of items from their co-occurrence in sequences.

    Rows of items with company have length 1, all others are zero.

    Args:
        values: item numbers of all training sequences, one after the other.
        offsets: where each sequence starts [users + 1].
        n_items: catalogue size.
        dim: largest size of an embedding.
        window: items at most this far apart were bought together.
        seed: of the truncated SVD.
    """
    from sklearn.decomposition import TruncatedSVD

    size = max(1, min(dim, n_items - 1))
    matrix = ppmi(count_transitions(values, offsets, n_items, window, 1.0))
    if not matrix.nnz:
        return np.zeros((n_items, size), dtype=np.float32)
    svd = TruncatedSVD(size, n_iter=7, random_state=seed)
    found = svd.fit_transform(matrix) / np.sqrt(np.maximum(svd.singular_values_, 1e-12))
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    has = norms > 1e-6
    return np.where(has, found / np.where(has, norms, 1), 0).astype(np.float32)


def join(text: np.ndarray, company: np.ndarray, how: Join, weight: float) -> tuple[np.ndarray, float]:
    """Text and co-occurrence embeddings as one, so that co-occurrence has the share `weight` of the variance.

    Args:
        text: [n, dim].
        company: [n, other]; zero rows say nothing: such items are their text.
        how: concat, or average, for which co-occurrence is first turned towards the text (orthogonal Procrustes).
        weight: from 0 to 1.

    Returns:
        Embeddings (float32) [n, dim + other] or, for the average, [n, dim]; and the factor that the text got, for items
        that come later.
    """
    has = np.abs(company).sum(1) > 0
    company = np.where(has[:, None], company - company[has].mean(0), 0) if has.any() else company
    factor = float(np.sqrt(1 - weight) / _spread(text))
    company = company * np.sqrt(weight) / _spread(company)
    if how == "average":
        from scipy.linalg import orthogonal_procrustes

        size = max(text.shape[1], company.shape[1])
        wide, other = (np.pad(one, ((0, 0), (0, size - one.shape[1]))) for one in (text, company))
        rotation, _ = orthogonal_procrustes(other[has], (wide - wide.mean(0))[has])
        return (wide * factor + other @ rotation).astype(np.float32)[:, : text.shape[1]], factor
    return np.concatenate([text * factor, company], axis=1).astype(np.float32), factor


def _spread(x: np.ndarray) -> float:
    """Root of the total variance; 1 where there is none."""
    return float(np.sqrt(x.var(axis=0, dtype=np.float64).sum())) or 1.0
