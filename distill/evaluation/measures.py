"""The figures of a row that ranked lists tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from distill import metrics
from distill.data.dataset import Examples
from distill.evaluation.systems import System, batches, rank_examples
from distill.metrics import hit_ranks, ndcg, recall
from distill.ranking import top_items


def measure_lists(
    lists: np.ndarray, targets: np.ndarray, cutoffs: Sequence[int], vectors: np.ndarray, counts: np.ndarray
) -> dict[str, Any]:
    """Compute the figures of a row that need nothing but its lists.

    Args:
        lists: ranked item numbers, -1 for none [users, longest cutoff].
        targets: item numbers [users].
        cutoffs: K of recall, NDCG and diversity.
        vectors: embeddings for diversity [n_items, dim].
        counts: interactions of each item in the training part [n_items].
    """
    ranks, longest = hit_ranks(lists, targets), max(cutoffs)
    at = min(10, longest)
    row: dict[str, Any] = {}
    for k in sorted(cutoffs):
        row[f"recall@{k}"], row[f"ndcg@{k}"] = float(recall(ranks, k).mean()), float(ndcg(ranks, k).mean())
    row[f"mrr@{longest}"] = float(metrics.mrr(ranks, longest).mean())
    for name, values in ((f"recall@{at}", recall(ranks, at)), (f"ndcg@{at}", ndcg(ranks, at))):
        row[f"{name}_low"], row[f"{name}_high"] = metrics.interval(values)
    for k in sorted(cutoffs):
        if k > 1:
            row[f"diversity@{k}"] = float(metrics.diversity(lists, vectors, k).mean())
    row[f"catalogue@{at}"] = metrics.catalogue_coverage(lists[:, :at], len(counts))
    row[f"gini@{at}"] = metrics.gini(lists[:, :at], len(counts))
    row[f"novelty@{at}"] = float(metrics.novelty(lists[:, :at], counts).mean())
    row["by_popularity"] = measure_groups(ranks, targets, counts, at)
    return row


def measure_groups(ranks: np.ndarray, targets: np.ndarray, counts: np.ndarray, at: int) -> list[dict[str, Any]]:
    """Recall and NDCG by the popularity of the target; the last group, "unseen", are items without training data.

    Args:
        ranks: of the targets, from `hit_ranks` [users].
        targets: item numbers [users].
        counts: interactions of each item in the training part [n_items].
        at: K.
    """
    groups = metrics.popularity_groups(counts)
    parts = []
    for group in (*range(groups.max() + 1), -1):
        in_group = groups[targets] == group
        part = {"group": "unseen" if group < 0 else group + 1, "items": int((groups == group).sum())}
        part["users"] = int(in_group.sum())
        if in_group.any():
            part[f"recall@{at}"] = float(recall(ranks[in_group], at).mean())
            part[f"ndcg@{at}"] = float(ndcg(ranks[in_group], at).mean())
        parts.append(part)
    return parts


def measure_reach(lists: np.ndarray, targets: np.ndarray, reachable: np.ndarray, at: int) -> dict[str, float | None]:
    """Recall on targets that counting can find and on the others; None where there are none.

    Args:
        lists: ranked item numbers [users, at least K].
        targets: item numbers [users].
        reachable: whether counting finds the target at all [users].
        at: K.
    """
    hits = recall(hit_ranks(lists, targets), at)

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if len(values) else None

    return {f"recall@{at}_reachable": mean(hits[reachable]), f"recall@{at}_unreachable": mean(hits[~reachable])}


def compare_ndcg(lists: np.ndarray, reference: np.ndarray, targets: np.ndarray, k: int) -> dict[str, float]:
    """NDCG@k of lists above that of a reference system's lists, user by user: `metrics.paired`."""
    return metrics.paired(ndcg(hit_ranks(lists, targets), k), ndcg(hit_ranks(reference, targets), k))


class Searched(NamedTuple):
    """Items that a system finds with one beam width, best first, -1 for none or an invalid ID, all [users, width].

    Attributes:
        items: among valid semantic IDs.
        free: without the trie; None: the system needs it.
        whole: over all tokens; None: the system has no such search.
    """

    items: np.ndarray
    free: np.ndarray | None
    whole: np.ndarray | None


def search_width(
    system: System, examples: Examples, width: int, exclude_bought: bool, batch_size: int = 256
) -> Searched:
    """Search with one beam width, with and without the trie; arguments as `rank_examples`."""
    title = f"{system.name}, beam width {width}"
    items = rank_examples(system, examples, width, exclude_bought, True, batch_size, title).items
    free = None
    if not system.needs_trie:
        free = rank_examples(system, examples, width, exclude_bought, False, batch_size, f"{title}, no trie").items
    return Searched(items, free, search_whole(system, examples, width, batch_size, f"{title}, whole vocabulary"))


def search_whole(system: System, examples: Examples, width: int, batch_size: int, title: str = "") -> np.ndarray | None:
    """Search over all tokens; None where the system has no such search."""
    items: np.ndarray | None = None
    for rows, histories in batches(examples, batch_size, title or system.name):
        whole = system.search_whole_vocabulary(histories, width)
        if whole is None:
            return None
        items = np.empty((len(examples), whole.shape[1]), whole.dtype) if items is None else items
        items[rows] = whole
    return items


def measure_widths(
    search: Callable[[int], Searched], widths: Sequence[int], targets: np.ndarray, vectors: np.ndarray
) -> list[dict[str, float | None]]:
    """NDCG and diversity of the first 10, diversity and share of invalid semantic IDs of all beams, for several widths.

    Invalid IDs are counted twice: `invalid`, where each step chooses among the codewords of its level (None: the
    system needs the trie), and `invalid_whole`, where it chooses among all tokens of the system (None: it has no such
    search).

    Args:
        search: searches for some users with a beam width.
        widths: beam widths.
        targets: item numbers of these users [users].
        vectors: embeddings for diversity [n_items, dim].
    """
    results = []
    for width in sorted(widths):
        items, free, whole = search(width)
        ranks = hit_ranks(items, targets)
        results.append({
            "width": width,
            "recall@10": float(recall(ranks, min(10, width)).mean()),
            "ndcg@10": float(ndcg(ranks, min(10, width)).mean()),
            "diversity@10": float(metrics.diversity(items, vectors, min(10, width)).mean()),
            "diversity": float(metrics.diversity(items, vectors, width).mean()),
            "invalid": None if free is None else float((free < 0).mean()),
            "invalid_whole": None if whole is None else float((whole < 0).mean()),
        })  # fmt: skip
    return results


def beam_missed(lists: np.ndarray, exact: np.ndarray, k: int) -> float:
    """Share of the k truly best items that the first k of the beams lack, where there is an item to recommend.

    Args:
        lists: beams of all users [users, at least k].
        exact: scores of all items for the first users, −∞ for those that may not be recommended [first users, n_items].
        k: how many.
    """
    best = top_items(exact, k, above=-np.inf)
    some = (best >= 0).any(1)
    return float(1 - metrics.coverage(lists[: len(exact), :k], best)[some].mean()) if some.any() else 0.0
