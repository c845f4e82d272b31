"""How good semantic IDs are: pure functions of codes, embeddings, categories and sequences.

Codes alone tell use and collisions. Whether a shared prefix means anything is asked three ways, each against chance:
of categories, of neighbours in the embedding, and of items bought together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distill.semantic_ids.ids import keys
from distill.semantic_ids.quantisers import Quantiser

GROUPS = (1, 2, 5, 20, 100)  # lower ends of the classes of prefix sizes
CHUNK = 1 << 14
QUERIES, CANDIDATES = 2000, 100_000  # items whose neighbours are looked for, and among how many


def prefixes(codes: np.ndarray) -> np.ndarray:
    """Number of each item's prefix at every length [n, levels]: equal prefixes, equal numbers from 0."""
    return np.stack([keys(codes[:, : level + 1]) for level in range(codes.shape[1])], axis=1)


def usage(codes: np.ndarray, codebook_size: int) -> list[dict[str, float]]:
    """Per level, codes used and their perplexity `exp(entropy)`: how many equally used codes would be as various."""
    levels = []
    for column in codes.T:
        share = np.bincount(column, minlength=codebook_size) / len(codes)
        share = share[share > 0]
        levels.append({"used": len(share), "perplexity": float(np.exp(-(share * np.log(share)).sum()))})
    return levels


def reconstruction(quantiser: Quantiser, embeddings: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
    """Squared error of the decoded codes, as a share of the embeddings' variance, and what each level takes off it.

    0 is perfect, 1 is no better than the mean embedding. The decoder of an RQ-VAE was trained on all levels, so that
    its first level alone may explain less than nothing.
    """
    levels = codes.shape[1]
    errors, total, squares = np.zeros(levels), np.zeros(embeddings.shape[1]), 0.0
    for start in range(0, len(codes), CHUNK):
        rows = np.asarray(embeddings[start : start + CHUNK], dtype=np.float32)
        total += rows.sum(0, dtype=np.float64)
        squares += float(np.square(rows).sum(dtype=np.float64))
        for level in range(levels):
            found = quantiser.decode(codes[start : start + CHUNK, : level + 1])
            errors[level] += float(np.square(rows - found).sum(dtype=np.float64))
    variance = max(squares - float(np.square(total).sum()) / len(codes), 1e-12)
    left = errors / variance
    return {
        "reconstruction_error": float(left[-1]),
        "mean_squared_error": float(errors[-1] / (len(codes) * embeddings.shape[1])),
        "explained_per_level": [float(value) for value in -np.diff(left, prepend=1.0)],
    }


def sharing(prefix: np.ndarray) -> list[dict[str, Any]]:
    """Per prefix length, distinct prefixes, and the share of items whose prefix has so many items.

    Args:
        prefix: of `prefixes` [n, levels].
    """
    rows = []
    for column in prefix.T:
        counts = np.bincount(column)
        places = np.searchsorted(GROUPS, counts[column], side="right") - 1
        shares = np.bincount(places, minlength=len(GROUPS)) / len(column)
        rows.append({"prefixes": len(counts), "largest": int(counts.max()), "shares": [float(one) for one in shares]})
    return rows


def purity(prefix: np.ndarray, categories: list[str], seed: int = 0) -> dict[str, Any] | None:
    """Per prefix length, the share of items that are of the commonest category among those with their prefix.

    Only items that share the prefix count (alone, everybody is pure). Chance: the same with categories shuffled. None
    where fewer than two categories are known.
    """
    known = np.array([bool(category) for category in categories])
    _, label = np.unique(np.array(categories)[known], return_inverse=True)
    if not len(label) or label.max() == 0:
        return None
    shuffled = np.random.default_rng(seed).permutation(label)
    both = [[_pure(column[known], one) for column in prefix.T] for one in (label, shuffled)]
    return {"categories": int(label.max()) + 1, "purity": both[0], "chance": both[1]}


def _pure(group: np.ndarray, label: np.ndarray) -> float | None:
    pairs, counts = np.unique(group * (int(label.max()) + 1) + label, return_counts=True)
    owner = pairs // (int(label.max()) + 1)
    largest = np.zeros(int(group.max()) + 1, dtype=np.int64)
    np.maximum.at(largest, owner, counts)
    sizes = np.bincount(group)
    shared = sizes > 1
    return float(largest[shared].sum() / sizes[shared].sum()) if shared.any() else None


def neighbours(prefix: np.ndarray, embeddings: np.ndarray, k: int = 10, seed: int = 0) -> dict[str, Any]:
    """Per prefix length, how often an item and one of its k nearest in the embedding (Euclidean) share the prefix.

    Chance: two items at random. Of large catalogues, a random sample is looked at.
    """
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(seed)
    among = np.sort(rng.permutation(len(prefix))[:CANDIDATES])
    asking = np.sort(rng.permutation(len(among))[:QUERIES])
    points = np.asarray(embeddings[among], dtype=np.float32)
    k = min(k, len(among) - 1)
    found = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(points).kneighbors(points[asking])[1]
    others = found != asking[:, None]
    others[others.all(1), -1] = False  # equal embeddings can push an item out of its own list
    near = among[found[others].reshape(len(asking), k)]
    own = prefix[among[asking]]
    share = [float((own[:, None, level] == prefix[near, level]).mean()) for level in range(prefix.shape[1])]
    return {"k": k, "share": share, "chance": [_chance(column, np.ones(len(column))) for column in prefix.T]}


def co_purchase(prefix: np.ndarray, values: np.ndarray, offsets: np.ndarray, window: int = 5) -> dict[str, Any] | None:
    """Per prefix length, how often two different items bought within `window` steps of each other share the prefix.

    Chance: two different items drawn as often as they occur in such pairs. None where there is no pair.

    Args:
        prefix: of `prefixes` [n, levels].
        values: item numbers of all training sequences, one after the other.
        offsets: where each sequence starts [users + 1].
        window: largest distance in a sequence.
    """
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    left, right = [], []
    for gap in range(1, window + 1):
        pair = (owner[gap:] == owner[:-gap]) & (values[gap:] != values[:-gap])
        left.append(values[:-gap][pair])
        right.append(values[gap:][pair])
    one, other = np.concatenate(left), np.concatenate(right)
    if not len(one):
        return None
    weight = np.bincount(np.concatenate([one, other]), minlength=len(prefix)).astype(float)
    share = [float((column[one] == column[other]).mean()) for column in prefix.T]
    return {"pairs": len(one), "share": share, "chance": [_chance(column, weight) for column in prefix.T]}


def _chance(group: np.ndarray, weight: np.ndarray) -> float:
    """Probability that two different items, drawn by weight [n], are of one group [n]."""
    weight = weight / weight.sum()
    same = float(np.square(weight).sum())
    together = float(np.square(np.bincount(group, weight)).sum())
    return max(0.0, round((together - same) / (1 - same), 12)) if same < 1 else 0.0  # without dust of the subtraction
