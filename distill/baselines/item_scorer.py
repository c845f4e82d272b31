"""What all baselines that score items share: recommending, and choosing settings on the validation part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Protocol, TypeVar

import numpy as np

from distill.data.dataset import Dataset, Examples
from distill.metrics import MISSED, ndcg
from distill.ranking import mask_history, top_items

CHUNK = 1024  # users scored at once, at most
SCORES_AT_ONCE = 1 << 27  # of all their items, at most; ranking takes 24 bytes a score
MAX_HISTORY = 1000  # bounds the memory of padded histories: 8 kB a user
Model = TypeVar("Model")


class ItemScorer(Protocol):
    """A model that scores all items after a history.

    Attributes:
        n_items: size of the catalogue.
    """

    @property
    def n_items(self) -> int: ...

    def scores(self, histories: np.ndarray) -> np.ndarray:
        """Score all items; 0 or less means "not recommended".

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].

        Returns:
            float [users, n_items].
        """
        ...


def users_at_once(n_items: int) -> int:
    """Decide for how many users all items of a catalogue are scored at once, so that memory is bounded."""
    return max(1, min(CHUNK, SCORES_AT_ONCE // n_items))


def split_examples(examples: Examples, n_items: int) -> Iterator[Examples]:
    """Yield the examples in parts of `users_at_once`."""
    size = users_at_once(n_items)
    for start in range(0, len(examples), size):
        yield examples.take(slice(start, start + size))


def recommend(model: ItemScorer, examples: Examples, k: int, exclude_bought: bool = True) -> np.ndarray:
    """List the k best items after each history, ties by item number, -1 where nothing scores above zero [users, k]."""
    lists = []
    for part in split_examples(examples, model.n_items):
        scores = model.scores(part.histories)
        if exclude_bought:
            mask_history(scores, part.histories, 0.0)
        lists.append(top_items(scores, k))
    return np.concatenate(lists)


def target_ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Rank of each target, ties by item number, `MISSED` where it scores nothing [users].

    The same as `hit_ranks` of `top_items`, without sorting: settings are compared by it.
    """
    target_scores = np.take_along_axis(scores, targets[:, None], axis=1)
    better = scores > target_scores
    better |= (scores == target_scores) & (np.arange(scores.shape[1]) < targets[:, None])
    return np.where(target_scores[:, 0] > 0, better.sum(1), MISSED)


def mean_ndcg(model: ItemScorer, examples: Examples, exclude_bought: bool) -> float:
    """NDCG@10 of a model over all examples."""
    total = 0.0
    for part in split_examples(examples, model.n_items):
        scores = model.scores(part.histories)
        if exclude_bought:
            mask_history(scores, part.histories, 0.0)
        total += float(ndcg(target_ranks(scores, part.targets), 10).sum())
    return total / len(examples)


def best_of(models: Iterable[Model], quality: Callable[[Model], float]) -> tuple[Model, float]:
    """Return the model of the best quality, the first of equals, and its quality."""
    rated = ((model, quality(model)) for model in models)
    return max(rated, key=itemgetter(1))


def sample_examples(examples: Examples, limit: int) -> Examples:
    """Draw at most `limit` examples, in their order; always the same ones."""
    if len(examples) <= limit:
        return examples
    return examples.take(np.sort(np.random.default_rng(0).choice(len(examples), limit, replace=False)))


def longest_history(dataset: Dataset) -> int:
    """Length of the longest history, at most `MAX_HISTORY`: what a user bought is excluded wherever it stands."""
    return min(MAX_HISTORY, max(1, int(np.diff(dataset.offsets).max(initial=1)) - 1))


def validation_examples(dataset: Dataset, limit: int) -> Examples:
    """At most `limit` validation examples with their full histories; always the same ones."""
    return sample_examples(dataset.examples("valid", longest_history(dataset)), limit)
