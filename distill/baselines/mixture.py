"""The baseline `counter+content`: mix counted transitions with the similarity of texts, without learning.

    p(v | history) = (1 − a) · share of v among the transition scores + a · softmax(cosine / τ) of v

Both distributions are over the items that may be recommended.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from distill.baselines.content import Content
from distill.baselines.counting import Transitions
from distill.baselines.item_scorer import split_examples, target_ranks, validation_examples
from distill.data.dataset import Dataset
from distill.metrics import ndcg
from distill.ranking import mask_history


@dataclass(frozen=True)
class CounterContentSettings:
    """How the two are mixed."""

    weight: float = 0.3
    """a: weight of the content part, 0 to 1."""
    temperature: float = 0.08
    """τ of the softmax over cosines."""

    def in_words(self) -> str:
        """The settings in a sentence, for notes below a table."""
        return f"content weighs {self.weight}, at temperature {self.temperature}"


WEIGHTS = (0.3, 0.05, 0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8)
TEMPERATURES = (0.08, 0.04, 0.06, 0.12, 0.16, 0.24)


class CounterContent:
    """Score items by the mixture of a counter's and a content model's distributions.

    Args:
        transitions: the counter.
        content: the text similarity.
        settings: how they are mixed.
        exclude_bought: whether the items of the history get probability 0.
    """

    def __init__(
        self, transitions: Transitions, content: Content, settings: CounterContentSettings, exclude_bought: bool
    ):
        self.transitions, self.content = transitions, content
        self.settings, self.exclude_bought = settings, exclude_bought

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return self.transitions.n_items

    def scores(self, histories: np.ndarray) -> np.ndarray:
        """Probabilities of all items, as `ItemScorer.scores` [users, n_items]."""
        shares = self.transitions.shares(histories, self.exclude_bought)
        cosines = allowed_cosines(self.content, histories, self.exclude_bought)
        return mix(shares, softmax(cosines / self.settings.temperature, axis=1), self.settings.weight)

    @staticmethod
    def tune(
        dataset: Dataset, transitions: Transitions, content: Content, exclude_bought: bool, max_users: int = 5000
    ) -> CounterContent:
        """Choose weight and temperature by validation NDCG@10, the first of equals; both parts keep their settings."""
        examples = validation_examples(dataset, max_users)
        choices = [CounterContentSettings(weight, temperature)
                   for temperature, weight in itertools.product(TEMPERATURES, WEIGHTS)]  # fmt: skip
        totals = dict.fromkeys(choices, 0.0)
        for part in split_examples(examples, dataset.n_items):
            shares = transitions.shares(part.histories, exclude_bought)
            cosines = allowed_cosines(content, part.histories, exclude_bought)
            for temperature in TEMPERATURES:
                chances = softmax(cosines / temperature, axis=1)
                for weight in WEIGHTS:
                    ranks = target_ranks(mix(shares, chances, weight), part.targets)
                    totals[CounterContentSettings(weight, temperature)] += float(ndcg(ranks, 10).sum())
        return CounterContent(transitions, content, max(totals, key=totals.__getitem__), exclude_bought)


def allowed_cosines(content: Content, histories: np.ndarray, exclude_bought: bool) -> np.ndarray:
    """Cosines of all items, −∞ for those that may not be recommended [users, n_items]."""
    cosines = content.cosines(histories)
    if exclude_bought:
        mask_history(cosines, histories, -np.inf)
    return cosines


def mix(shares: np.ndarray, chances: np.ndarray, weight: float) -> np.ndarray:
    """(1 − weight) · shares + weight · chances, of any one shape."""
    return (1 - weight) * shares + weight * chances
