"""The systems of a table that learn nothing, and which of them is its floor."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from distill.baselines import counting, names
from distill.baselines.content import Content
from distill.baselines.counting import Transitions, TransitionSettings
from distill.baselines.graph_walk import GraphHeuristic
from distill.baselines.item_scorer import ItemScorer, recommend, validation_examples
from distill.baselines.mixture import CounterContent
from distill.baselines.popularity import Popularity
from distill.data.dataset import Dataset, Examples
from distill.evaluation.cold import ScoreCandidates
from distill.evaluation.systems import Ranked
from distill.metrics import hit_ranks, ndcg, recall
from distill.ranking import scores_of

VALIDATION_USERS = 5000  # by whom the floor is chosen


class Recommends(Protocol):
    """Whatever lists items for examples."""

    def recommend(self, examples: Examples, k: int, exclude_bought: bool) -> np.ndarray:
        """The k best items, best first, -1 for none [users, k]."""
        ...


@dataclass(frozen=True)
class ScoredBaseline:
    """An `ItemScorer` that recommends."""

    scorer: ItemScorer

    def recommend(self, examples: Examples, k: int, exclude_bought: bool) -> np.ndarray:
        """As `Recommends.recommend`."""
        if isinstance(self.scorer, Content):
            return self.scorer.recommend(examples, k, exclude_bought)
        return recommend(self.scorer, examples, k, exclude_bought)


@dataclass(frozen=True)
class Baseline:
    """A system that learns nothing.

    Attributes:
        name: of its row (`distill.baselines.names`).
        model: lists items.
        note: settings in words, for below the table.
        distribution: its scores can be normalised to a distribution over items; None: they cannot.
    """

    name: str
    model: Recommends
    note: str = ""
    distribution: ItemScorer | None = None

    @property
    def score_candidates(self) -> ScoreCandidates | None:
        """Scores given items after histories; None for a model that only lists items."""
        model = self.model
        if not isinstance(model, ScoredBaseline):
            return None
        return lambda histories, items: scores_of(model.scorer.scores(histories), items, 0.0)

    def rank(self, examples: Examples, k: int, exclude_bought: bool) -> Ranked:
        """List the k best items of all examples; the scores are left empty."""
        started = time.time()
        items = self.model.recommend(examples, k, exclude_bought)
        return Ranked(items, np.zeros((len(items), 0)), time.time() - started)


class Baselines:
    """Build the baselines on the training part, each tuned on validation as it is evaluated.

    Args:
        dataset: counted.
        vectors: embeddings that say which items are similar, for the graph walk [n_items, dim].
        texts: text embeddings [n_items, dim]; None: no baseline that reads texts.
        exclude_bought: whether items of the history are never recommended.
        settings: of the transitions; None: the best on validation.
    """

    def __init__(
        self,
        dataset: Dataset,
        vectors: np.ndarray,
        texts: np.ndarray | None,
        exclude_bought: bool,
        settings: TransitionSettings | None = None,
    ):
        self.dataset, self.vectors, self.texts, self.exclude_bought = dataset, vectors, texts, exclude_bought
        self.popularity = Popularity(dataset)
        if settings:
            self.transitions = Transitions(dataset, settings)
        else:
            self.transitions, _ = Transitions.tune(dataset, exclude_bought)

    def build(self, wanted: list[str]) -> list[Baseline]:
        """Build the baselines of these names, in the order of `names.NOT_LEARNED`."""
        counted = self.transitions.settings
        baselines = []
        if names.POPULARITY in wanted:
            baselines.append(scored(names.POPULARITY, self.popularity, ""))
        if names.TRANSITIONS in wanted:
            note = f"counts of the training part; {counted.in_words()}"
            baselines.append(scored(names.TRANSITIONS, self.transitions, note))
        if names.TRANSITIONS_VALID in wanted:
            model = Transitions(self.dataset, counted, with_validation=True)
            note = f"counts of the training and validation parts; {counted.in_words()}"
            baselines.append(scored(names.TRANSITIONS_VALID, model, note))
        if names.GRAPH in wanted:
            walk = GraphHeuristic.tune(self.dataset, self.vectors, self.exclude_bought)
            baselines.append(Baseline(names.GRAPH, walk, walk.settings.in_words()))
        return baselines + self._reading_texts(wanted)

    @cached_property
    def content(self) -> Content | None:
        """The similarity of texts; None without texts."""
        return None if self.texts is None else Content.tune(self.dataset, self.texts, self.exclude_bought)

    def _reading_texts(self, wanted: list[str]) -> list[Baseline]:
        if names.CONTENT not in wanted and names.COUNTER_CONTENT not in wanted:
            return []
        content = self.content
        baselines = []
        if names.CONTENT in wanted:
            note = f"similarity of texts; {content.settings.in_words()}"
            baselines.append(Baseline(names.CONTENT, ScoredBaseline(content), note))
        if names.COUNTER_CONTENT in wanted:
            both = CounterContent.tune(self.dataset, self.transitions, content, self.exclude_bought)
            note = f"{names.TRANSITIONS} mixed with {names.CONTENT}; {both.settings.in_words()}"
            baselines.append(scored(names.COUNTER_CONTENT, both, note))
        return baselines


def scored(name: str, model: ItemScorer, note: str) -> Baseline:
    """A baseline whose scores are a distribution once they are normalised."""
    return Baseline(name, ScoredBaseline(model), note, model)


def choose_floor(
    baselines: list[Baseline], dataset: Dataset, exclude_bought: bool
) -> tuple[str | None, dict[str, float]]:
    """Choose the best of `names.FLOOR_CANDIDATES` by validation NDCG@10, never by test.

    Returns:
        Its name (None without a candidate; the first of equals), and NDCG@10 of each candidate.
    """
    examples = validation_examples(dataset, VALIDATION_USERS)
    values = {}
    for baseline in baselines:
        if baseline.name in names.FLOOR_CANDIDATES:
            lists = baseline.model.recommend(examples, 10, exclude_bought)
            values[baseline.name] = float(ndcg(hit_ranks(lists, examples.targets), 10).mean())
    return max(values, key=values.get) if values else None, values


def flattering_figures(transitions: Transitions, examples: Examples) -> dict[str, Any]:
    """Figures of the counter if the target won every tie and were never excluded, as many publications count."""
    ranks = counting.ranks_with_ties_won(transitions, examples)
    return {"recall@10_ties_won": float(recall(ranks, 10).mean()), "ndcg@10_ties_won": float(ndcg(ranks, 10).mean())}
