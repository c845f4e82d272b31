"""Ranking metrics (paper 4.1): pure functions of arrays, full ranking, one relevant item a user."""

from __future__ import annotations

import numpy as np

MISSED = np.iinfo(np.int32).max  # beyond every cutoff, however short the list


def hit_ranks(lists: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Place of the target in each list, 0 the first; `MISSED` where it is not there.

    Args:
        lists: recommended item numbers, best first, -1 for none [users, width].
        targets: item numbers [users].
    """
    hits = lists == targets[:, None]
    return np.where(hits.any(1), hits.argmax(1), MISSED)


def recall(ranks: np.ndarray, k: int) -> np.ndarray:
    """Recall@k a user [users], from `hit_ranks` of lists at least k wide."""
    return (ranks < k).astype(float)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k a user [users]: 1 / log2(rank + 2), the ideal being 1."""
    return np.where(ranks < k, 1 / np.log2(ranks + 2.0), 0)


def diversity(lists: np.ndarray, embeddings: np.ndarray, k: int) -> np.ndarray:
    """Equation (17): 2 / (K(K+1)) Σ_i Σ_{j≥i} (1 − cos(e_i, e_j)) a user [users]; the terms with j = i are zero.

    Args:
        lists: item numbers [users, width]; places with -1 count nothing.
        embeddings: any item embeddings [n_items, dim].
        k: K.
    """
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    total = np.zeros(len(lists))
    for i in range(min(k, lists.shape[1])):  # pair by pair: no [users, k, dim] block in memory
        for j in range(i + 1, min(k, lists.shape[1])):
            a, b = lists[:, i], lists[:, j]
            total += np.where((a >= 0) & (b >= 0), 1 - (unit[a] * unit[b]).sum(1), 0)
    return 2 * total / (k * (k + 1))


def coverage(lists: np.ndarray, teacher_lists: np.ndarray) -> np.ndarray:
    """Share of the teacher's list that the student's list holds, a user [users] (paper 4.6, like ROUGE-1)."""
    found = (teacher_lists[:, :, None] == lists[:, None, :]).any(2) & (teacher_lists >= 0)
    return found.sum(1) / np.maximum((teacher_lists >= 0).sum(1), 1)


def kl_to_truth(truth: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """KL(truth ‖ model) in nats a user [users], over items; a model that excludes a possible item is infinitely far.

    Args:
        truth: probabilities [users, n_items].
        log_probs: the model's log-probabilities [users, n_items].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(truth > 0, truth * (np.log(truth) - log_probs), 0)
    return terms.sum(1)
