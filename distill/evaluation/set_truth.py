"""Evaluation with sets as truth: all later items of a user at once, as SETRec's protocol has it.

Under `global_cut` a user's truth is the set of items that it bought in the held-out period, and its history is what
came before. Figures are those of all items, and of warm and cold ones alone: these restrict both the candidates and the
truth. Cold items are in no training sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from distill import metrics
from distill.data.dataset import PAD, Dataset
from distill.ranking import mask_history, top_items
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class SetExamples:
    """Users with a set of later items each.

    Attributes:
        users: user numbers [n].
        histories: item numbers, oldest first, padded on the right with -1 [n, length].
        truth: distinct later items, ascending, padded on the right with -1 [n, largest set].
    """

    users: np.ndarray
    histories: np.ndarray
    truth: np.ndarray

    @staticmethod
    def of(dataset: Dataset, split: Literal["valid", "test"], max_history: int) -> SetExamples:
        """Collect each user's later items; users without a history before the period are left out.

        Under leave-one-out every set holds one item.

        Raises:
            UserError: no user is left.
        """
        examples = dataset.examples(split, max_history)
        _, first, counts = np.unique(examples.users, return_index=True, return_counts=True)
        if dataset.ends is not None:  # a first item inside the period is no history of it
            starts = dataset.ends[examples.users[first], 0 if split == "valid" else 1]
            keep = starts >= 1
            first, counts = first[keep], counts[keep]
        if not len(first):
            raise UserError(f"No user of the data set has a history before its {split} part and an item in it.")
        sets = [np.unique(examples.targets[start : start + count]) for start, count in zip(first, counts, strict=True)]
        truth = np.full((len(sets), max(len(items) for items in sets)), PAD)
        for row, items in enumerate(sets):
            truth[row, : len(items)] = items
        return SetExamples(examples.users[first], examples.histories[first], truth)


def measure_sets(
    score: Callable[[np.ndarray], np.ndarray],
    examples: SetExamples,
    counts: np.ndarray,
    cutoffs: Sequence[int],
    exclude_bought: bool,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Rank all items exactly for each user, and measure the lists against the sets.

    Args:
        score: scores of all items after histories [users, length] → [users, n_items].
        examples: the users.
        counts: interactions of each item in the training part [n_items].
        cutoffs: K.
        exclude_bought: exclude items of the history (paper: no).
        batch_size: users at once.

    Returns:
        Figures of "all", "warm" and "cold", and of popularity groups 1 (most popular) to 5, which restrict the truth
        alone. Each has the number of users with such truth, and recall and NDCG at each K, means over these users;
        None where there are none.
    """
    warm, popularity, longest = counts > 0, metrics.popularity_groups(counts), max(cutoffs)
    candidates = {"all": np.ones(len(counts), dtype=bool), "warm": warm, "cold": ~warm}
    lists: dict[str, list[np.ndarray]] = {name: [] for name in candidates}
    for start in range(0, len(examples.users), batch_size):
        histories = examples.histories[start : start + batch_size]
        scores = np.array(score(histories))
        if exclude_bought:
            mask_history(scores, histories, -np.inf)
        for name, allowed in candidates.items():
            lists[name].append(top_items(np.where(allowed, scores, -np.inf), longest, above=-np.inf))
    row: dict[str, Any] = {}
    for name, allowed in candidates.items():
        row[name] = set_figures(np.concatenate(lists[name]), restrict(examples.truth, allowed), cutoffs)
    ranked = np.concatenate(lists["all"])
    for group in range(5):
        row[f"popularity {group + 1}"] = set_figures(ranked, restrict(examples.truth, popularity == group), cutoffs)
    return row


def restrict(truth: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Remove items from sets: -1 in their place [users, largest set]."""
    return np.where((truth != PAD) & allowed[truth], truth, PAD)


def set_figures(lists: np.ndarray, truth: np.ndarray, cutoffs: Sequence[int]) -> dict[str, float | int | None]:
    """Compute means of recall and NDCG over the users whose set is not empty."""
    rows = (truth != PAD).any(1)
    lists, truth = lists[rows], truth[rows]
    figures: dict[str, float | int | None] = {"users": int(rows.sum())}
    for k in sorted(cutoffs):
        for name, measure in (("recall", metrics.set_recall), ("ndcg", metrics.set_ndcg)):
            figures[f"{name}@{k}"] = float(measure(lists, truth, k).mean()) if rows.any() else None
    return figures
