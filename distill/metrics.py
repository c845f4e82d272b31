"""Ranking metrics (paper 4.1): pure functions of arrays, full ranking, one relevant item for each user.

Significance is computed here too: bootstrap intervals (`interval`) and paired tests (`paired`).
"""

from __future__ import annotations

import numpy as np

MISSED = np.iinfo(np.int32).max  # larger than every cutoff, however short the list


def hit_ranks(lists: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Find the rank of each target in its list: 0 for the first place, `MISSED` where the list lacks it.

    Args:
        lists: recommended item numbers, best first, -1 for none [users, width].
        targets: item numbers [users].

    Returns:
        int [users].
    """
    hits = lists == targets[:, None]
    return np.where(hits.any(1), hits.argmax(1), MISSED)


def recall(ranks: np.ndarray, k: int) -> np.ndarray:
    """Compute recall@k for each user [users], from `hit_ranks` of lists at least k wide."""
    return (ranks < k).astype(float)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """Compute NDCG@k for each user [users]: 1 / log2(rank + 2); the ideal DCG is 1."""
    return np.where(ranks < k, 1 / np.log2(ranks + 2.0), 0)


def set_recall(lists: np.ndarray, truth: np.ndarray, k: int) -> np.ndarray:
    """Compute the share of each user's set that is in the first k places, hits / |truth| [users].

    Args:
        lists: recommended item numbers, best first, -1 for none [users, width].
        truth: distinct item numbers, -1 for none; no set is empty [users, largest set].
        k: at most the width.
    """
    return _set_hits(lists, truth, k).sum(1) / (truth >= 0).sum(1)


def set_ndcg(lists: np.ndarray, truth: np.ndarray, k: int) -> np.ndarray:
    """Compute NDCG@k against a set: Σ of 1 / log2(rank + 2) over its hits, over that of min(|truth|, k) hits in front.

    Args and Returns: as `set_recall`.
    """
    hits = _set_hits(lists, truth, k)
    gains = 1 / np.log2(np.arange(k) + 2.0)
    ideal = np.cumsum(gains)[np.minimum((truth >= 0).sum(1), k) - 1]
    return (hits * gains[: hits.shape[1]]).sum(1) / ideal


def _set_hits(lists: np.ndarray, truth: np.ndarray, k: int) -> np.ndarray:
    """Tell which of the first k places hold an item of the set [users, k]."""
    first = lists[:, :k]
    return ((first[:, :, None] == truth[:, None]) & (first >= 0)[:, :, None]).any(2)


def mrr(ranks: np.ndarray, k: int) -> np.ndarray:
    """Compute the reciprocal rank within the first k places for each user [users]."""
    return np.where(ranks < k, 1 / (ranks + 1.0), 0)


def diversity(lists: np.ndarray, embeddings: np.ndarray, k: int) -> np.ndarray:
    """Compute equation (17), 2 / (K(K+1)) Σ_i Σ_{j≥i} (1 − cos(e_i, e_j)), for each user [users].

    Terms with j = i are zero.

    Args:
        lists: item numbers [users, width]; places with -1 add nothing.
        embeddings: any item embeddings [n_items, dim].
        k: K.
    """
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    squared_norms = (unit * unit).sum(1)  # 1, or 0 for a zero vector
    cosines, pairs = np.zeros(len(lists)), np.zeros(len(lists))
    for start in range(0, len(lists), 1024):
        chunk = slice(start, start + 1024)
        items = lists[chunk, :k]
        known = items >= 0
        total = np.zeros((len(items), unit.shape[1]))
        for place in range(items.shape[1]):
            total += np.where(known[:, place, None], unit[items[:, place]], 0)
        # Σ_{i<j} e_i·e_j = (‖Σ_i e_i‖² − Σ_i ‖e_i‖²) / 2
        cosines[chunk] = ((total * total).sum(1) - np.where(known, squared_norms[items], 0).sum(1)) / 2
        pairs[chunk] = known.sum(1) * (known.sum(1) - 1) / 2
    return 2 * (pairs - cosines) / (k * (k + 1))


def coverage(lists: np.ndarray, teacher_lists: np.ndarray) -> np.ndarray:
    """Compute the share of the teacher's list that the student's holds [users] (paper 4.6, like ROUGE-1)."""
    covered = (teacher_lists[:, :, None] == lists[:, None, :]).any(2) & (teacher_lists >= 0)
    return covered.sum(1) / np.maximum((teacher_lists >= 0).sum(1), 1)


def coordination(lists: np.ndarray, teacher_lists: np.ndarray) -> np.ndarray:
    """Compute the longest common subsequence over the teacher's length, for each user [users] (4.6, like ROUGE-L)."""
    equal = (lists[:, :, None] == teacher_lists[:, None, :]) & (teacher_lists >= 0)[:, None, :]
    longest = np.zeros((len(lists), teacher_lists.shape[1] + 1), dtype=int)
    for place in range(lists.shape[1]):
        before = longest.copy()
        for other in range(teacher_lists.shape[1]):
            skipped = np.maximum(longest[:, other], before[:, other + 1])
            longest[:, other + 1] = np.where(equal[:, place, other], before[:, other] + 1, skipped)
    return longest[:, -1] / np.maximum((teacher_lists >= 0).sum(1), 1)


def catalogue_coverage(lists: np.ndarray, n_items: int) -> float:
    """Compute the share of the catalogue that is recommended to at least one user."""
    return len(np.unique(lists[lists >= 0])) / n_items


def gini(lists: np.ndarray, n_items: int) -> float:
    """Compute the Gini index of how often items are recommended: 0 if all are alike, near 1 if a few fill all lists."""
    counts = np.sort(np.bincount(lists[lists >= 0], minlength=n_items))
    if not counts.any():
        return 0.0
    return float(((2 * np.arange(1, n_items + 1) - n_items - 1) * counts).sum() / (n_items * counts.sum()))


def novelty(lists: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Compute the mean self-information of a list's items, −log2 of their share of interactions, in bits [users].

    Args:
        lists: item numbers [users, width]; places with -1 add nothing.
        counts: interactions of each item in the training part [n_items]; 1 is added to each.
    """
    bits = -np.log2((counts + 1) / (counts + 1).sum())
    return np.where(lists >= 0, bits[lists], 0).sum(1) / np.maximum((lists >= 0).sum(1), 1)


def popularity_groups(counts: np.ndarray, groups: int = 5) -> np.ndarray:
    """Group items by popularity, 0 for the most popular; each group holds about the same number of interactions.

    Args:
        counts: interactions of each item in the training part [n_items].
        groups: number of groups.

    Returns:
        Group of each item [n_items], -1 for items without interactions.
    """
    order = np.argsort(-counts, kind="stable")
    middle = np.cumsum(counts[order]) - counts[order] / 2
    group = np.empty(len(counts), dtype=int)
    group[order] = np.minimum(groups * middle // max(counts.sum(), 1), groups - 1)
    return np.where(counts > 0, group, -1)


def kl_to_truth(truth: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """Compute KL(truth ‖ model) over items in nats [users]; infinite where the model excludes a possible item.

    Args:
        truth: probabilities [users, n_items].
        log_probs: the model's log-probabilities [users, n_items].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(truth > 0, truth * (np.log(truth) - log_probs), 0)
    return terms.sum(1)


def interval(values: np.ndarray, level: float = 0.95, resamples: int = 1000) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of the mean over users: (low, high).

    Args:
        values: one number for each user [users].
        level: of confidence.
        resamples: bootstrap samples; always the same ones.
    """
    from scipy import stats  # slow to import, and trainers need only the metrics above

    if len(values) < 2 or (values == values[0]).all():
        return float(values.mean()), float(values.mean())
    result = stats.bootstrap((values,), np.mean, n_resamples=resamples, batch=100, confidence_level=level,
                             method="percentile", rng=np.random.default_rng(0))  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Test how far system a lies above system b, user by user.

    Args:
        a, b: a metric of the same users [users].

    Returns:
        `difference` of the means, its 95% bootstrap interval `low`, `high`, and `p` of the paired t-test; where all
        differences are equal, so that there is no variance, of the sign test.
    """
    from scipy import stats

    difference = a - b
    low, high = interval(difference)
    if np.ptp(difference) < 1e-12:  # the same for all users
        p = 1.0 if abs(difference[0]) < 1e-12 else 2.0 ** (1 - len(difference))
    else:
        p = float(stats.ttest_rel(a, b).pvalue)
    return {"difference": float(difference.mean()), "low": low, "high": high, "p": p}
