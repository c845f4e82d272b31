"""Measure recommendations of cold items: items that no training sequence holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from distill.baselines.item_scorer import sample_examples
from distill.data.dataset import PAD, Dataset, Examples
from distill.metrics import hit_ranks, ndcg, recall
from distill.ranking import mask_history, top_items

# of users and cold items, by kind of system: minutes on a CPU
MAX_SCORES = {"student": 1_500_000, "teacher": 50_000, "ranker": 50_000}
CANDIDATES_AT_ONCE = 500  # of one user
SCORES_AT_ONCE = 4000  # of all users: bounds memory

# (histories [users, length], items [users, k]) -> scores [users, k]
ScoreCandidates = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ColdTargets:
    """The cold items of a data set, and the examples whose target is one.

    Attributes:
        items: the cold items, ascending [n_cold].
        is_cold: whether an example's target is cold [examples].
        sample: the examples for which all cold items are ranked; they have cold targets.
    """

    items: np.ndarray
    is_cold: np.ndarray
    sample: Examples

    @staticmethod
    def find(dataset: Dataset, examples: Examples, limit: int) -> ColdTargets:
        """Find the cold items and their examples.

        Args:
            dataset: its training part decides which items are cold.
            examples: all that are evaluated.
            limit: examples in `sample` at most; always the same ones.
        """
        items = dataset.cold_items()
        is_cold = np.isin(examples.targets, items)
        return ColdTargets(items, is_cold, sample_examples(examples.take(is_cold), limit))

    @property
    def n_scores(self) -> int:
        """Number of scores that `measure_scores` asks for."""
        return len(self.sample) * len(self.items)

    def measure_lists(self, lists: np.ndarray, targets: np.ndarray, at: int) -> dict[str, float | int | None]:
        """Compute recall and NDCG of the cold targets among all items; None where no target is cold.

        Args:
            lists: ranked item numbers of all examples, -1 for none [examples, at least K].
            targets: item numbers [examples].
            at: K.
        """
        ranks = hit_ranks(lists[self.is_cold], targets[self.is_cold])
        return {"cold_users": len(ranks), **_figures(ranks, at, "cold")}

    def measure_scores(
        self, score: ScoreCandidates | None, at: int, exclude_bought: bool, above: float = -np.inf
    ) -> dict[str, float | int | None]:
        """Compute recall and NDCG of the sample's targets among the cold items alone.

        Args:
            score: scores given items after histories; None where that costs too much: the figures are None.
            at: K.
            exclude_bought: leave out cold items of the histories.
            above: only items with a higher score are recommended; 0 for counts and probabilities.
        """
        if score is None or not len(self.sample):
            return _figures(np.empty(0), at, "cold_among_cold")
        step = max(1, SCORES_AT_ONCE // min(len(self.items), CANDIDATES_AT_ONCE))
        lists = [self._rank(score, self.sample.histories[start : start + step], at, exclude_bought, above)
                 for start in range(0, len(self.sample), step)]  # fmt: skip
        return _figures(hit_ranks(np.concatenate(lists), self.sample.targets), at, "cold_among_cold")

    def _rank(
        self, score: ScoreCandidates, histories: np.ndarray, at: int, exclude_bought: bool, above: float
    ) -> np.ndarray:
        """Rank the cold items of a few users: item numbers, -1 for none [users, up to K]."""
        histories = histories[:, : max(1, (histories != PAD).sum(1).max())]
        parts = np.split(self.items, range(CANDIDATES_AT_ONCE, len(self.items), CANDIDATES_AT_ONCE))
        scores = np.concatenate([score(histories, np.tile(part, (len(histories), 1))) for part in parts], axis=1)
        if exclude_bought:
            number = np.full(max(self.items.max(), histories.max()) + 1, PAD)
            number[self.items] = np.arange(len(self.items))
            mask_history(scores, np.where(histories == PAD, PAD, number[histories]), -np.inf)
        top = top_items(scores, at, above)
        return np.where(top == PAD, PAD, self.items[top])


def _figures(ranks: np.ndarray, at: int, suffix: str) -> dict[str, float | None]:
    if not len(ranks):
        return {f"recall@{at}_{suffix}": None, f"ndcg@{at}_{suffix}": None}
    return {
        f"recall@{at}_{suffix}": float(recall(ranks, at).mean()),
        f"ndcg@{at}_{suffix}": float(ndcg(ranks, at).mean()),
    }
