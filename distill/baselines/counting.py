"""The counting baseline `transitions`: counts which items are bought near each other, without learning.

A[i, j] = Σ decay^(g−1) over the pairs (i, j) of the training sequences at distance g ≤ window, both directions
score(v | history) = Σ_{d < last} recency^d · N[d-th last item, v],   N = diag(rowsum^−½) A
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import scipy.sparse as sp
from jsonargparse.typing import ClosedUnitInterval, PositiveInt

from distill.baselines.item_scorer import best_of, mean_ndcg, recommend, split_examples, validation_examples
from distill.data.dataset import PAD, Dataset, Examples
from distill.metrics import MISSED
from distill.ranking import mask_history

__all__ = ["GRID", "TransitionSettings", "Transitions", "count_transitions", "reachable", "reading_weights",
           "recommend", "smoothed"]  # fmt: skip


@dataclass(frozen=True)
class TransitionSettings:
    """How transitions are counted, and how a history is read."""

    window: PositiveInt = 5
    """G: count pairs at most this far apart."""
    decay: ClosedUnitInterval = 0.7
    """A pair at distance g counts decay^(g-1)."""
    recency: ClosedUnitInterval = 0.7
    """w: the d-th last item of the history weighs w^d."""
    last: PositiveInt = 10
    """L: how many of the last items of the history are read."""

    def in_words(self) -> str:
        """The settings in a sentence, for notes below a table."""
        return (
            f"pairs at most {self.window} items apart, decay {self.decay} a step; "
            f"the last {self.last} items of the history, weight {self.recency} a step back"
        )


GRID = [
    TransitionSettings(window, decay, recency, last)
    for window, decay in ((1, 1.0), (3, 0.7), (5, 0.7), (10, 0.8), (20, 0.8), (20, 1.0))
    for recency, last in ((0.3, 5), (0.6, 5), (0.7, 10), (0.9, 20))
]


def count_transitions(values: np.ndarray, offsets: np.ndarray, n_items: int, window: int, decay: float) -> sp.csr_array:
    """Count A: decay^(g−1) for each pair at distance g ≤ window, in both directions [n_items, n_items].

    Args:
        values: item numbers of all sequences, one sequence after the other.
        offsets: where each sequence starts [users + 1].
        n_items: catalogue size.
        window: G.
        decay: per step of distance.
    """
    pairs = pairs_by_distance(values, offsets, window, decay)
    earlier, later, weight = map(np.concatenate, zip(*pairs, strict=True))
    counts = sp.coo_array((weight, (earlier, later)), shape=(n_items, n_items)).tocsr()
    return (counts + counts.T).tocsr()


def pairs_by_distance(
    values: np.ndarray, offsets: np.ndarray, window: int, decay: float, is_new: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield, for each distance g from 1 to the window, the earlier item, the later one and decay^(g−1) of all pairs.

    Args:
        values, offsets, window, decay: as in `count_transitions`.
        is_new: only pairs whose later value is new [values] (bool); default: all.
    """
    sequence_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    for gap in range(1, window + 1):
        together = sequence_of[gap:] == sequence_of[:-gap]
        if is_new is not None:
            together &= is_new[gap:]
        weights = np.full(together.sum(), decay ** (gap - 1))
        yield values[:-gap][together], values[gap:][together], weights


def reading_weights(histories: np.ndarray, settings: TransitionSettings, n_items: int) -> sp.csr_array:
    """Weigh the items of each history: recency^d for the d-th last one, d < last [users, n_items].

    The weights of an item that occurs twice are added.
    """
    lengths = (histories != PAD).sum(1)
    rows, columns, weights = [], [], []
    for back in range(min(settings.last, histories.shape[1])):
        users = np.flatnonzero(lengths > back)
        rows.append(users)
        columns.append(histories[users, lengths[users] - 1 - back])
        weights.append(np.full(len(users), settings.recency**back))
    row, column, weight = map(np.concatenate, (rows, columns, weights))
    return sp.coo_array((weight, (row, column)), shape=(len(histories), n_items)).tocsr()


class Transitions:
    """Score items by counted transitions: Σ_{d<L} w^d · N[d-th last item], N = diag(rowsum^−½) A.

    Args:
        dataset: its training part is counted.
        settings: how it is counted and read.
        with_validation: count the validation part as well.
    """

    def __init__(self, dataset: Dataset, settings: TransitionSettings, with_validation: bool = False):
        values, offsets = dataset.training_sequences(with_validation)
        counts = count_transitions(values, offsets, dataset.n_items, settings.window, settings.decay)
        total = counts.sum(1)
        scale = np.divide(1, np.sqrt(total), out=np.zeros_like(total), where=total > 0)
        self.matrix = (sp.diags_array(scale) @ counts).tocsr()
        self.settings = settings

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return self.matrix.shape[0]

    def scores(self, histories: np.ndarray) -> np.ndarray:
        """As `ItemScorer.scores` [users, n_items]."""
        return (reading_weights(histories, self.settings, self.matrix.shape[0]) @ self.matrix).toarray()

    def shares(self, histories: np.ndarray, exclude_bought: bool) -> np.ndarray:
        """Scores as a distribution over the items that may be recommended; rows without any are zero [users, n_items].

        Args:
            histories: as for `scores`.
            exclude_bought: give nothing to the items of the history.
        """
        scores = self.scores(histories)
        if exclude_bought:
            mask_history(scores, histories, 0.0)
        return normalised(scores)

    @staticmethod
    def tune(dataset: Dataset, exclude_bought: bool | None = None, max_users: int = 5000) -> tuple[Transitions, float]:
        """Choose the settings of `GRID` with the best validation NDCG@10.

        Args:
            dataset: its training part is counted, its validation part decides.
            exclude_bought: as the evaluation ranks; None: the data set's default (`Dataset.resolve_exclude_bought`).
            max_users: validation examples, at most.

        Returns:
            The best counter, and its NDCG@10.
        """
        exclude_bought = dataset.resolve_exclude_bought(exclude_bought)
        examples = validation_examples(dataset, max_users)
        count = functools.cache(lambda window, decay: Transitions(dataset, TransitionSettings(window, decay)))
        models = (count(settings.window, settings.decay).with_settings(settings) for settings in GRID)
        return best_of(models, lambda model: mean_ndcg(model, examples, exclude_bought))

    def with_settings(self, settings: TransitionSettings) -> Transitions:
        """Read the same counts with another recency and length."""
        other = object.__new__(Transitions)
        other.matrix, other.settings = self.matrix, settings
        return other

    def describe(self) -> dict:
        """The settings as a dictionary."""
        return asdict(self.settings)


def reachable(model: Transitions, examples: Examples) -> np.ndarray:
    """Tell whether counting can find each target at all: it scores something after its history [users], bool."""
    parts = []
    for part in split_examples(examples, model.n_items):
        parts.append(model.scores(part.histories)[np.arange(len(part)), part.targets] > 0)
    return np.concatenate(parts)


def ranks_with_ties_won(model: Transitions, examples: Examples) -> np.ndarray:
    """Rank each target as if it won every tie and were never excluded as bought [users]; unreachable ones are `MISSED`.

    This is too favourable. Many published figures are computed this way, so it is reported beside the exact rank.
    """
    ranks = []
    for part in split_examples(examples, model.n_items):
        scores = model.scores(part.histories)
        target_scores = scores[np.arange(len(part)), part.targets][:, None].copy()
        mask_history(scores, part.histories, -1.0)
        ranks.append(np.where(target_scores[:, 0] > 0, (scores > target_scores).sum(1), MISSED))
    return np.concatenate(ranks)


def normalised(scores: np.ndarray) -> np.ndarray:
    """Divide each row by its sum; rows of zeros stay zero [users, n_items]."""
    total = scores.sum(1, keepdims=True)
    return np.divide(scores, total, out=np.zeros_like(scores), where=total > 0)


def smoothed(scores: np.ndarray, popularity: np.ndarray, share: float) -> np.ndarray:
    """Mix normalised scores with popularity, so that no item is impossible [users, n_items]."""
    background = (popularity + 0.5) / (popularity + 0.5).sum()
    return (1 - share) * normalised(scores) + share * background
