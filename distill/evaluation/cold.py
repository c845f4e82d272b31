"""Measure recommendations of cold items: items that no training sequence holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
        step = self.users_at_once
        lists = [self._rank(score, self.sample.histories[start : start + step], at, exclude_bought, above)
                 for start in range(0, len(self.sample), step)]  # fmt: skip
        return _figures(hit_ranks(np.concatenate(lists), self.sample.targets), at, "cold_among_cold")

    @property
    def users_at_once(self) -> int:
        """For how many users of `sample` scores are asked at once."""
        return max(1, SCORES_AT_ONCE // max(1, min(len(self.items), CANDIDATES_AT_ONCE)))

    def is_feasible(self, kind: str) -> bool:
        """Tell whether the cold items can be scored by a system of this kind (`MAX_SCORES`)."""
        return self.n_scores <= MAX_SCORES.get(kind, np.inf)

    def answer_from(self, scores: np.ndarray) -> ScoreCandidates:
        """Answer what `measure_scores` asks.

        Args:
            scores: of what `cold_candidates` yields for `users_at_once` of the sample at a time [sample, n_cold].
        """
        answers = {}
        for start in range(0, len(self.sample), self.users_at_once):
            rows = slice(start, start + self.users_at_once)
            first = 0
            for histories, items in cold_candidates(self.items, self.sample.histories[rows]):
                answers[histories.tobytes(), items.tobytes()] = scores[rows, first : first + items.shape[1]]
                first += items.shape[1]
        return lambda histories, items: answers[histories.tobytes(), items.tobytes()]

    def _rank(
        self, score: ScoreCandidates, histories: np.ndarray, at: int, exclude_bought: bool, above: float
    ) -> np.ndarray:
        """Rank the cold items of a few users: item numbers, -1 for none [users, up to K]."""
        scores = np.concatenate([score(*candidates) for candidates in cold_candidates(self.items, histories)], axis=1)
        if exclude_bought:
            number = np.full(max(self.items.max(), histories.max()) + 1, PAD)
            number[self.items] = np.arange(len(self.items))
            mask_history(scores, np.where(histories == PAD, PAD, number[histories]), -np.inf)
        top = top_items(scores, at, above)
        return np.where(top == PAD, PAD, self.items[top])


def cold_candidates(items: np.ndarray, histories: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield histories without common padding, and some of the cold items to score after each [users, k].

    Args:
        items: the cold items [n_cold].
        histories: of a few users [users, length].
    """
    histories = histories[:, : max(1, (histories != PAD).sum(1).max())]
    for part in np.split(items, range(CANDIDATES_AT_ONCE, len(items), CANDIDATES_AT_ONCE)):
        yield histories, np.tile(part, (len(histories), 1))


def _figures(ranks: np.ndarray, at: int, suffix: str) -> dict[str, float | None]:
    if not len(ranks):
        return {f"recall@{at}_{suffix}": None, f"ndcg@{at}_{suffix}": None}
    return {
        f"recall@{at}_{suffix}": float(recall(ranks, at).mean()),
        f"ndcg@{at}_{suffix}": float(ndcg(ranks, at).mean()),
    }
