"""A transition memory beside a student: item-to-item counts that are mixed in when it recommends.

kNN-LM (Khandelwal et al., 2020) does the same for text:

    p(v|S) = (1 − w) · p_student(v|S) + w · p_counter(v|S)

over the union of the student's beams and the counter's top items; those that the beams lack are scored by the student
exactly. Items are ranked by log p(v|S) − β · log(1 + d(v)), d(v) being the sum of an item's counts: student and counter
both overrate items that are bought often. Counting takes seconds and no training; `grow` adds new interactions.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file

from distill.baselines.counting import TransitionSettings, count_transitions, reading_weights
from distill.data.dataset import PAD, Dataset
from distill.metrics import hit_ranks, ndcg
from distill.runtime.errors import UserError

FILE = "memory.safetensors"
TOP = 50  # items of the counter that join the beams
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
DISCOUNTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)


@dataclass(frozen=True)
class TransitionMemory:
    """A counter of transitions and its share in the mixture.

    Attributes:
        counts: A of `count_transitions` [n_items, n_items].
        settings: how A was counted and is read.
        weight: w, the counter's share.
        top: how many of its items join the student's beams.
        discount: β, the discount of items that are bought often.
    """

    counts: sp.csr_array
    settings: TransitionSettings
    weight: float = 0.5
    top: int = TOP
    discount: float = 0.0

    @staticmethod
    def of(
        dataset: Dataset, settings: TransitionSettings, with_validation: bool = False, **facts: Any
    ) -> TransitionMemory:
        """Count the training part of a data set, on request with its validation part.

        Args:
            dataset: the data set.
            settings: how to count and to read the counts.
            with_validation: count the validation part too.
            facts: further attributes: weight, top, discount.
        """
        values, offsets = dataset.training_sequences(with_validation)
        counts = count_transitions(values, offsets, dataset.n_items, settings.window, settings.decay)
        return TransitionMemory(counts, settings, **facts)

    @cached_property
    def familiarity(self) -> np.ndarray:
        """log(1 + d(v)), d(v) being the sum of an item's counts [n_items]."""
        return np.log1p(np.asarray(self.counts.sum(1), dtype=float))

    @cached_property
    def matrix(self) -> sp.csr_array:
        """N = diag(rowsum^−½) A, as in `Transitions` [n_items, n_items]."""
        total = np.asarray(self.counts.sum(1), dtype=float)
        scale = np.divide(1, np.sqrt(total), out=np.zeros_like(total), where=total > 0)
        return (sp.diags_array(scale) @ self.counts).tocsr()

    def grow(self, sequences: Sequence[Sequence[int]], new: Sequence[int]) -> TransitionMemory:
        """Add new interactions; the result is the same as if all had been counted at once.

        Args:
            sequences: of the users with new interactions, item numbers in time order; the last `window` old items of a
                user are enough.
            new: how many items at the end of each sequence have not been counted yet.

        Raises:
            UserError: an item outside the catalogue, more new items than a sequence has.
        """
        n_items, settings = self.counts.shape[0], self.settings
        rows = [np.asarray(row, dtype=np.int64) for row in sequences]
        for user, (row, count) in enumerate(zip(rows, new, strict=True)):
            if len(row) and not 0 <= row.min() <= row.max() < n_items:
                raise UserError(f"Sequence {user} names an item outside the catalogue of {n_items} items.")
            if not 0 <= count <= len(row):
                raise UserError(f"Sequence {user} has {len(row)} items, {count} of them cannot be new.")

        def count(parts: list[np.ndarray]) -> sp.csr_array:
            offsets = np.cumsum([0, *map(len, parts)])
            values = np.concatenate([*parts, np.zeros(0, np.int64)])
            return count_transitions(values, offsets, n_items, settings.window, settings.decay)

        old = [row[: len(row) - n_new] for row, n_new in zip(rows, new, strict=True)]
        counts = (self.counts + count(rows) - count(old)).tocsr()
        counts.data[np.abs(counts.data) < 1e-12] = 0  # rounding errors of differences that are zero
        counts.eliminate_zeros()
        return dataclasses.replace(self, counts=counts)

    def probabilities(self, histories: np.ndarray, exclude_bought: bool = True) -> sp.csr_array:
        """Compute the counter's distribution over items after histories.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            exclude_bought: no probability for items of the history.

        Returns:
            Sparse [users, n_items]; a row sums to 1, or is empty where the counter knows no transition.
        """
        scores = (reading_weights(histories, self.settings, self.counts.shape[0]) @ self.matrix).tocsr()
        if exclude_bought:
            rows, places = np.nonzero(histories != PAD)
            bought = sp.coo_array((np.ones(len(rows)), (rows, histories[rows, places])), shape=scores.shape)
            scores = (scores - scores * (bought.tocsr() > 0)).tocsr()
            scores.eliminate_zeros()
        total = scores.sum(1)
        scores = (sp.diags_array(np.divide(1, total, out=np.zeros_like(total), where=total > 0)) @ scores).tocsr()
        scores.sort_indices()
        return scores

    def facts(self) -> dict[str, Any]:
        """Return what the student's config.json holds under "memory"."""
        return {**asdict(self.settings), "weight": self.weight, "top": self.top, "discount": self.discount}

    def save(self, folder: Path) -> None:
        """Write the counts; `facts` belong into the student's config.json."""
        counts = self.counts
        save_file({"values": counts.data, "items": counts.indices, "offsets": counts.indptr}, folder / FILE)

    @staticmethod
    def load(folder: Path, facts: dict[str, Any]) -> TransitionMemory:
        """Read what `save` wrote, with the `facts` of the student's config.json."""
        facts = dict(facts)
        weight, top, discount = facts.pop("weight"), facts.pop("top"), facts.pop("discount", 0.0)
        arrays = load_file(folder / FILE)
        n_items = len(arrays["offsets"]) - 1
        counts = sp.csr_array((arrays["values"], arrays["items"], arrays["offsets"]), shape=(n_items, n_items))
        return TransitionMemory(counts, TransitionSettings(**facts), weight, top, discount)


class Candidates(NamedTuple):
    """Items that student or counter propose, each once; all arrays are [users, any].

    Attributes:
        items: item numbers, -1 for none.
        log_probs: the student's log P(v|S), -inf for none.
        counter: the counter's probabilities.
        familiarity: log(1 + d(v)).
    """

    items: np.ndarray
    log_probs: np.ndarray
    counter: np.ndarray
    familiarity: np.ndarray

    def ranked(self, weight: float, width: int, discount: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Rank by the mixture: items, best first, -1 for none, and log p − β · log(1 + d); both [users, up to width].

        Args:
            weight: w.
            width: items per user.
            discount: β.
        """
        scores = mixed(self.log_probs, self.counter, weight) - discount * self.familiarity
        order = np.argsort(-scores, axis=1, kind="stable")[:, :width]
        scores = np.take_along_axis(scores, order, axis=1)
        return np.where(scores > -np.inf, np.take_along_axis(self.items, order, axis=1), PAD), scores


def mixed(log_probs: np.ndarray, counter: np.ndarray, weight: float) -> np.ndarray:
    """Compute log((1 − w) · exp(log_probs) + w · counter), elementwise."""
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log(1 - weight) + log_probs, np.log(weight) + np.log(counter))


def candidates(
    beams: tuple[np.ndarray, np.ndarray],
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    memory: TransitionMemory,
    histories: np.ndarray,
    exclude_bought: bool = True,
) -> Candidates:
    """Collect what a student and a transition memory propose, with both probabilities.

    Args:
        beams: the student's items, -1 for none, and their log P(v|S); both [users, width].
        score: (histories, items [users, k], -1 for none) -> log P(v|S) [users, k].
        memory: the counter.
        histories: item numbers, oldest first, padded with -1 on the right [users, length].
        exclude_bought: no probability of the counter for items of the history.
    """
    beam_items, log_probs = beams
    probabilities = memory.probabilities(histories, exclude_bought)
    top = top_of_rows(probabilities, memory.top)
    top = np.where((top[:, :, None] == beam_items[:, None, :]).any(2), PAD, top)
    top = top[:, (top != PAD).any(0)]  # without columns that are empty for all users
    items = np.concatenate([beam_items, top], axis=1)
    if top.shape[1]:
        log_probs = np.concatenate([log_probs, score(histories, top)], axis=1)
    users = np.broadcast_to(np.arange(len(items))[:, None], items.shape)
    counter = np.where(items == PAD, 0, probabilities[users, np.maximum(items, 0)].toarray())
    log_probs = np.where(items == PAD, -np.inf, log_probs).astype(float)
    return Candidates(items, log_probs, counter, memory.familiarity[items])


def top_of_rows(matrix: sp.csr_array, k: int) -> np.ndarray:
    """Columns of the k largest positive entries of each row, ties by number, -1 for the rest [rows, k]."""
    top = np.full((matrix.shape[0], k), PAD)
    for row, (start, end) in enumerate(zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)):
        best = np.argsort(-matrix.data[start:end], kind="stable")[:k]
        best = best[matrix.data[start:end][best] > 0]
        top[row, : len(best)] = matrix.indices[start:end][best]
    return top


def best_share(
    proposals: Candidates,
    targets: np.ndarray,
    weights: Sequence[float] = WEIGHTS,
    discounts: Sequence[float] = (0.0,),
    k: int = 10,
) -> tuple[tuple[float, float], dict[tuple[float, float], float]]:
    """Choose the mixture's weight and discount by NDCG@k.

    Args:
        proposals: for validation users, never for test users.
        targets: item numbers [users].
        weights, discounts: the grid.
        k: cut-off.

    Returns:
        The best (weight, discount), the smaller of equals, and NDCG@k of each pair.
    """
    values = {}
    for weight, discount in itertools.product(weights, discounts):
        lists, _ = proposals.ranked(weight, k, discount)
        values[weight, discount] = float(ndcg(hit_ranks(lists, targets), k).mean())
    return max(values, key=lambda pair: (values[pair], -pair[0], -pair[1])), values
