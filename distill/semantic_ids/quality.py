"""Measure semantic IDs: pure functions of codes, embeddings, categories and sequences.

Whether a shared prefix means something is measured by categories, by neighbours in the embedding, and by items bought
together, each against chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distill.semantic_ids.ids import keys
from distill.semantic_ids.quantisers import Quantiser

GROUPS = (1, 2, 5, 20, 100)  # lower ends of the groups of prefix sizes
CHUNK = 1 << 14
QUERIES, CANDIDATES = 2000, 100_000  # items whose neighbours are searched, and items searched through


def prefixes(codes: np.ndarray) -> np.ndarray:
    """Number each item's prefix at every length: equal prefixes, equal numbers from 0 [n, levels]."""
    return np.stack([keys(codes[:, : level + 1]) for level in range(codes.shape[1])], axis=1)


def usage(codes: np.ndarray, codebook_size: int) -> list[dict[str, float]]:
    """Count the codes used per level, and their perplexity `exp(entropy)`.

    Args:
        codes: [n, levels].
        codebook_size: codewords per level.
    """
    levels = []
    for column in codes.T:
        share = np.bincount(column, minlength=codebook_size) / len(codes)
        share = share[share > 0]
        levels.append({"used": len(share), "perplexity": float(np.exp(-(share * np.log(share)).sum()))})
    return levels


def reconstruction(quantiser: Quantiser, embeddings: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
    """Compute the error of the decoded codes as a share of the embeddings' variance, and what each level explains.

    0 is perfect, 1 is no better than the mean embedding. The decoder of an RQ-VAE was trained on all levels, so its
    first level alone may explain a negative share.

    Args:
        quantiser: decodes the codes.
        embeddings: [n, dim]; may be a memory map.
        codes: [n, levels].
    """
    levels = codes.shape[1]
    errors, total, squares = np.zeros(levels), np.zeros(embeddings.shape[1]), 0.0
    for start in range(0, len(codes), CHUNK):
        rows = np.asarray(embeddings[start : start + CHUNK], dtype=np.float32)
        total += rows.sum(0, dtype=np.float64)
        squares += float(np.square(rows).sum(dtype=np.float64))
        for level in range(levels):
            decoded = quantiser.decode(codes[start : start + CHUNK, : level + 1])
            errors[level] += float(np.square(rows - decoded).sum(dtype=np.float64))
    variance = max(squares - float(np.square(total).sum()) / len(codes), 1e-12)
    left = errors / variance
    return {
        "reconstruction_error": float(left[-1]),
        "mean_squared_error": float(errors[-1] / (len(codes) * embeddings.shape[1])),
        "explained_per_level": [float(value) for value in -np.diff(left, prepend=1.0)],
    }


def sharing(prefix: np.ndarray) -> list[dict[str, Any]]:
    """Count distinct prefixes per length, and the share of items by the number of items that share their prefix.

    Args:
        prefix: of `prefixes` [n, levels].
    """
    rows = []
    for column in prefix.T:
        counts = np.bincount(column)
        places = np.searchsorted(GROUPS, counts[column], side="right") - 1
        shares = np.bincount(places, minlength=len(GROUPS)) / len(column)
        rows.append(
            {"prefixes": len(counts), "largest": int(counts.max()), "shares": [float(share) for share in shares]}
        )
    return rows


def purity(prefix: np.ndarray, categories: list[str], seed: int = 0) -> dict[str, Any] | None:
    """Compute, per prefix length, the share of items that belong to the most common category of their prefix.

    Only items that share their prefix count. Chance: the same with shuffled categories.

    Args:
        prefix: of `prefixes` [n, levels].
        categories: of the items, empty if unknown [n].
        seed: of the shuffle.

    Returns:
        The number of categories, and purity and chance [levels]; None if fewer than two categories are known.
    """
    known = np.array([bool(category) for category in categories])
    _, label = np.unique(np.array(categories)[known], return_inverse=True)
    if not len(label) or label.max() == 0:
        return None
    shuffled = np.random.default_rng(seed).permutation(label)
    shares, chance = ([_purity(column[known], labels) for column in prefix.T] for labels in (label, shuffled))
    return {"categories": int(label.max()) + 1, "purity": shares, "chance": chance}


def _purity(group: np.ndarray, label: np.ndarray) -> float | None:
    pairs, counts = np.unique(group * (int(label.max()) + 1) + label, return_counts=True)
    owner = pairs // (int(label.max()) + 1)
    largest = np.zeros(int(group.max()) + 1, dtype=np.int64)
    np.maximum.at(largest, owner, counts)
    sizes = np.bincount(group)
    shared = sizes > 1
    return float(largest[shared].sum() / sizes[shared].sum()) if shared.any() else None


def neighbours(prefix: np.ndarray, embeddings: np.ndarray, k: int = 10, seed: int = 0) -> dict[str, Any]:
    """Compute, per prefix length, how often an item and one of its k nearest (Euclidean) share the prefix.

    Chance: two random items. Large catalogues are sampled.

    Args:
        prefix: of `prefixes` [n, levels].
        embeddings: [n, dim]; may be a memory map.
        k: neighbours per item.
        seed: of the sample.
    """
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(seed)
    candidates = np.sort(rng.permutation(len(prefix))[:CANDIDATES])
    queries = np.sort(rng.permutation(len(candidates))[:QUERIES])
    points = np.asarray(embeddings[candidates], dtype=np.float32)
    k = min(k, len(candidates) - 1)
    nearest = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(points).kneighbors(points[queries])[1]
    is_other = nearest != queries[:, None]
    is_other[is_other.all(1), -1] = False  # equal embeddings can push an item out of its own list
    neighbour = candidates[nearest[is_other].reshape(len(queries), k)]
    query_prefix = prefix[candidates[queries]]
    share = [
        float((query_prefix[:, None, level] == prefix[neighbour, level]).mean()) for level in range(prefix.shape[1])
    ]
    return {"k": k, "share": share, "chance": [_chance(column, np.ones(len(column))) for column in prefix.T]}


def co_purchase(prefix: np.ndarray, values: np.ndarray, offsets: np.ndarray, window: int = 5) -> dict[str, Any] | None:
    """Compute, per prefix length, how often two different items within `window` steps of a sequence share the prefix.

    Chance: two different items, drawn as often as they occur in such pairs.

    Args:
        prefix: of `prefixes` [n, levels].
        values: item numbers of all training sequences, one after the other.
        offsets: start of each sequence [users + 1].
        window: largest distance in a sequence.

    Returns:
        The number of pairs, and share and chance [levels]; None if there is no pair.
    """
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    left, right = [], []
    for gap in range(1, window + 1):
        pair = (owner[gap:] == owner[:-gap]) & (values[gap:] != values[:-gap])
        left.append(values[:-gap][pair])
        right.append(values[gap:][pair])
    first, second = np.concatenate(left), np.concatenate(right)
    if not len(first):
        return None
    weight = np.bincount(np.concatenate([first, second]), minlength=len(prefix)).astype(float)
    share = [float((column[first] == column[second]).mean()) for column in prefix.T]
    return {"pairs": len(first), "share": share, "chance": [_chance(column, weight) for column in prefix.T]}


def _chance(group: np.ndarray, weight: np.ndarray) -> float:
    """Compute the probability that two different items, drawn by weight [n], belong to the same group [n]."""
    weight = weight / weight.sum()
    same = float(np.square(weight).sum())
    together = float(np.square(np.bincount(group, weight)).sum())
    return (
        max(0.0, round((together - same) / (1 - same), 12)) if same < 1 else 0.0
    )  # rounds errors of the subtraction away
