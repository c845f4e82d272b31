"""The counting baseline: item-to-item transitions in the training part, with no learning."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import scipy.sparse as sp

from distill.baselines.popularity import Popularity
from distill.data.dataset import PAD, Dataset, Examples
from distill.metrics import MISSED, hit_ranks, ndcg
from distill.ranking import mask_history, top_items

CHUNK = 1024  # users scored at once


@dataclass(frozen=True)
class TransitionSettings:
    """How to count and how to read the counts."""

    window: int = 5
    """G: count pairs at most this far apart."""
    decay: float = 0.7
    """A pair at distance g counts decay^(g-1)."""
    recency: float = 0.7
    """w: weight w^d for the d-th last item of the history."""
    last: int = 10
    """L: items of the history that are used."""


GRID = [
    TransitionSettings(window, decay, recency, last)
    for window, decay in ((1, 1.0), (3, 0.7), (5, 0.7), (10, 0.8), (20, 0.8), (20, 1.0))
    for recency, last in ((0.3, 5), (0.6, 5), (0.7, 10), (0.9, 20))
]


def count_transitions(values: np.ndarray, offsets: np.ndarray, n_items: int, window: int, decay: float) -> sp.csr_array:
    """A: for each pair at distance g ≤ window, decay^(g−1), in both directions [n_items, n_items].

    Args:
        values: item numbers of all sequences, one after the other.
        offsets: where each sequence starts [users + 1].
        n_items: catalogue size.
        window: G.
        decay: per step of distance.
    """
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    rows, columns, weights = [], [], []
    for gap in range(1, window + 1):
        together = owner[gap:] == owner[:-gap]
        rows.append(values[:-gap][together])
        columns.append(values[gap:][together])
        weights.append(np.full(together.sum(), decay ** (gap - 1)))
    row, column, weight = map(np.concatenate, (rows, columns, weights))
    counts = sp.coo_array((weight, (row, column)), shape=(n_items, n_items)).tocsr()
    return (counts + counts.T).tocsr()


def reading_weights(histories: np.ndarray, settings: TransitionSettings, n_items: int) -> sp.csr_array:
    """w^d for the d-th last item of each history, d < L [users, n_items]; what occurs twice adds up."""
    lengths = (histories != PAD).sum(1)
    rows, columns, weights = [], [], []
    for back in range(min(settings.last, histories.shape[1])):
        has = np.flatnonzero(lengths > back)
        rows.append(has)
        columns.append(histories[has, lengths[has] - 1 - back])
        weights.append(np.full(len(has), settings.recency**back))
    row, column, weight = map(np.concatenate, (rows, columns, weights))
    return sp.coo_array((weight, (row, column)), shape=(len(histories), n_items)).tocsr()


class Transitions:
    """Score of an item after a history: Σ_{d<L} w^d · N[d-th last item], N = diag(rowsum^−½) A."""

    def __init__(self, dataset: Dataset, settings: TransitionSettings, with_validation: bool = False):
        values, offsets = dataset.training_sequences(with_validation)
        counts = count_transitions(values, offsets, dataset.n_items, settings.window, settings.decay)
        total = counts.sum(1)
        scale = np.divide(1, np.sqrt(total), out=np.zeros_like(total), where=total > 0)
        self.matrix = (sp.diags_array(scale) @ counts).tocsr()
        self.settings = settings

    def scores(self, histories: np.ndarray) -> np.ndarray:
        """Scores of all items [users, n_items] for histories padded with -1 [users, length]."""
        return (reading_weights(histories, self.settings, self.matrix.shape[0]) @ self.matrix).toarray()

    @staticmethod
    def tune(dataset: Dataset, max_users: int = 5000) -> tuple[Transitions, float]:
        """The settings of `GRID` with the best validation NDCG@10, and that NDCG@10."""
        examples = dataset.examples("valid")
        rng = np.random.default_rng(0)
        if len(examples) > max_users:
            examples = examples.take(np.sort(rng.choice(len(examples), max_users, replace=False)))
        counted: dict[tuple, Transitions] = {}
        best: tuple[float, Transitions] | None = None
        for settings in GRID:
            key = (settings.window, settings.decay)
            if key not in counted:
                counted[key] = Transitions(dataset, settings)
            model = counted[key].with_settings(settings)
            value = float(ndcg(hit_ranks(recommend(model, examples, 10), examples.targets), 10).mean())
            if best is None or value > best[0]:
                best = (value, model)
        return best[1], best[0]

    def with_settings(self, settings: TransitionSettings) -> Transitions:
        """The same counts read with another recency and length."""
        other = object.__new__(Transitions)
        other.matrix, other.settings = self.matrix, settings
        return other

    def describe(self) -> dict:
        """The settings, for reports."""
        return asdict(self.settings)


def recommend(model: Transitions | Popularity, examples: Examples, k: int, exclude_bought: bool = True) -> np.ndarray:
    """Top k items of an item-scoring model, ties by item number, -1 where nothing scores above zero [users, k]."""
    lists = []
    for start in range(0, len(examples), CHUNK):
        histories = examples.histories[start : start + CHUNK]
        scores = model.scores(histories)
        if exclude_bought:
            mask_history(scores, histories, 0.0)
        lists.append(top_items(scores, k))
    return np.concatenate(lists)


def reachable(model: Transitions, examples: Examples) -> np.ndarray:
    """Whether counting can find the target at all: it scores something after its history [users]."""
    found = []
    for start in range(0, len(examples), CHUNK):
        part = examples.take(slice(start, start + CHUNK))
        found.append(model.scores(part.histories)[np.arange(len(part)), part.targets] > 0)
    return np.concatenate(found)


def ranks_with_ties_won(model: Transitions, examples: Examples) -> np.ndarray:
    """Rank of each target if it wins every tie and is never left out as bought [users]; unreachable ones are last.

    This flatters: many published figures count this way, so it stands beside the honest one for comparison.
    """
    ranks = []
    for start in range(0, len(examples), CHUNK):
        part = examples.take(slice(start, start + CHUNK))
        scores = model.scores(part.histories)
        own = scores[np.arange(len(part)), part.targets][:, None].copy()
        mask_history(scores, part.histories, -1.0)
        ranks.append(np.where(own[:, 0] > 0, (scores > own).sum(1), MISSED))
    return np.concatenate(ranks)


def smoothed(scores: np.ndarray, popularity: np.ndarray, share: float) -> np.ndarray:
    """Scores as a distribution over items, mixed with popularity so that nothing is impossible [users, n_items]."""
    total = scores.sum(1, keepdims=True)
    own = np.divide(scores, total, out=np.zeros_like(scores), where=total > 0)
    floor = (popularity + 0.5) / (popularity + 0.5).sum()
    return (1 - share) * own + share * floor
