"""The baseline `content`: recommend items whose texts are like those of the history, without learning.

Item text embeddings e are centred and normalised. The profile of a history is Σ_{d < last} recency^d · e[d-th last
item]; an item's score is its cosine with the profile.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from distill.baselines.counting import TransitionSettings, reading_weights
from distill.baselines.item_scorer import CHUNK, best_of, mean_ndcg, recommend, validation_examples
from distill.data.dataset import Dataset, Examples
from distill.metrics import hit_ranks, ndcg
from distill.ranking import top_by_products

LARGE = 100_000  # items from which lists are made without the scores of all items


@dataclass(frozen=True)
class ContentSettings:
    """How a history is read."""

    recency: float = 0.6
    """The d-th last item of the history weighs recency^d."""
    last: int = 20
    """How many of the last items of the history are read."""

    def in_words(self) -> str:
        """The settings in a sentence, for notes below a table."""
        return f"the last {self.last} items of the history, weight {self.recency} a step back"


GRID = [ContentSettings(recency, last) for recency, last in itertools.product((0.6, 0.4, 0.8, 0.9), (20, 10, 5))]


class Content:
    """Score items by the cosine of their text embeddings with the profile of a history.

    Args:
        vectors: item text embeddings [n_items, dim].
        settings: how a history is read.
    """

    def __init__(self, vectors: np.ndarray, settings: ContentSettings | None = None):
        centred = vectors - vectors.mean(0, dtype=np.float64)
        norms = np.linalg.norm(centred, axis=1, keepdims=True)
        self.unit = (centred / np.maximum(norms, 1e-12)).astype(np.float32)
        self.settings = settings or ContentSettings()

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return len(self.unit)

    def profiles(self, histories: np.ndarray) -> np.ndarray:
        """Profile of each history, of length 1, float32 [users, dim]; 0 for an empty history."""
        reading = TransitionSettings(recency=self.settings.recency, last=self.settings.last)
        profile = reading_weights(histories, reading, len(self.unit)) @ self.unit
        profile /= np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-12)
        return profile.astype(np.float32)

    def cosines(self, histories: np.ndarray) -> np.ndarray:
        """Cosine of all items with the profile of each history [users, n_items]; 0 for an empty history."""
        return (self.profiles(histories) @ self.unit.T).astype(np.float64)

    def scores(self, histories: np.ndarray) -> np.ndarray:
        """As `ItemScorer.scores`: 1 + cosine, since scores of 0 or less are not recommended [users, n_items]."""
        return 1 + self.cosines(histories)

    def recommend(self, examples: Examples, k: int, exclude_bought: bool = True) -> np.ndarray:
        """As `item_scorer.recommend`; in large catalogues some items at a time, without scores of all [users, k]."""
        if self.n_items < LARGE:
            return recommend(self, examples, k, exclude_bought)
        lists = []
        for start in range(0, len(examples), CHUNK):
            histories = examples.histories[start : start + CHUNK]
            excluded = histories if exclude_bought else None
            lists.append(top_by_products(self.profiles(histories), self.unit, k, excluded))
        return np.concatenate(lists)

    @staticmethod
    def of_unit_vectors(unit: np.ndarray, settings: ContentSettings) -> Content:
        """Take over embeddings that are centred and of length 1 already [n_items, dim]."""
        model = object.__new__(Content)
        model.unit, model.settings = unit, settings
        return model

    @staticmethod
    def tune(dataset: Dataset, vectors: np.ndarray, exclude_bought: bool, max_users: int = 5000) -> Content:
        """Choose the settings of `GRID` with the best validation NDCG@10, the first of equals."""
        examples = validation_examples(dataset, max_users)
        model = Content(vectors)
        models = (model.with_settings(settings) for settings in GRID)
        return best_of(models, lambda model: model.quality(examples, exclude_bought))[0]

    def quality(self, examples: Examples, exclude_bought: bool) -> float:
        """NDCG@10 over all examples; in large catalogues of lists that are made some items at a time."""
        if self.n_items < LARGE:
            return mean_ndcg(self, examples, exclude_bought)
        ranks = hit_ranks(self.recommend(examples, 10, exclude_bought), examples.targets)
        return float(ndcg(ranks, 10).sum()) / len(examples)

    def with_settings(self, settings: ContentSettings) -> Content:
        """The same embeddings, another way to read histories."""
        return Content.of_unit_vectors(self.unit, settings)
