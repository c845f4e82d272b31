"""A counter beside a model: item-to-item transitions that are mixed in when it recommends, as kNN-LM does with text.

    p(v|S) = (1 − w) · p_model(v|S) + w · p_counter(v|S)

Over the union of the model's beams and the counter's top items; those of the counter that the beams lack are scored by
the model exactly. Items are ranked by log p(v|S) − β · log(1 + d(v)), d(v) being all that was counted of the item: both
parts think too much of what is bought often. The counter costs seconds, not training: new interactions are added by
`grow`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
    """The counter and its share.

    Attributes:
        counts: A of `count_transitions` [n_items, n_items].
        settings: how it was counted and is read.
        weight: w, the counter's share.
        top: how many of its items join the model's beams.
        discount: β, how much less is thought of what is bought often.
    """

    counts: sp.csr_array
    settings: TransitionSettings
    weight: float = 0.5
    top: int = TOP
    discount: float = 0.0

    def __post_init__(self):
        total = np.asarray(self.counts.sum(1), dtype=float)
        object.__setattr__(self, "familiarity", np.log1p(total))  # log(1 + d(v)) [n_items]
        scale = np.divide(1, np.sqrt(total), out=np.zeros_like(total), where=total > 0)
        object.__setattr__(self, "matrix", (sp.diags_array(scale) @ self.counts).tocsr())  # N of `floors.Transitions`

    @staticmethod
    def of(
        dataset: Dataset, settings: TransitionSettings, with_validation: bool = False, **facts: Any
    ) -> TransitionMemory:
        """Count the training part of a data set, with its validation part on request."""
        values, offsets = dataset.training_sequences(with_validation)
        return TransitionMemory(count_transitions(values, offsets, dataset.n_items, settings.window, settings.decay),
                      settings, **facts)  # fmt: skip

    def grow(self, sequences: Sequence[Sequence[int]], new: Sequence[int]) -> TransitionMemory:
        """The memory with yesterday's interactions, the same as if all had been counted at once.

        Args:
            sequences: of the users who bought something, item numbers in time order; `window` old items are enough.
            new: how many at the end of each have not been counted yet.

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

        old = [row[: len(row) - fresh] for row, fresh in zip(rows, new, strict=True)]
        counts = (self.counts + count(rows) - count(old)).tocsr()
        counts.data[np.abs(counts.data) < 1e-12] = 0  # what rounding leaves of a difference of equals
        counts.eliminate_zeros()
        return dataclasses.replace(self, counts=counts)

    def probabilities(self, histories: np.ndarray, exclude_bought: bool = True) -> sp.csr_array:
        """The counter's distribution over the items that may be recommended; rows without any are empty.

        Args:
            histories: item numbers, oldest first, padded with -1 [users, length].
            exclude_bought: nothing for the history's items.

        Returns:
            Sparse [users, n_items], rows sum to 1 or 0.
        """
        scores = (reading_weights(histories, self.settings, self.counts.shape[0]) @ self.matrix).tocsr()
        if exclude_bought:
            bought = reading_weights(
                histories, TransitionSettings(recency=1.0, last=histories.shape[1]), scores.shape[1]
            )
            scores = (scores - scores * (bought > 0)).tocsr()
            scores.eliminate_zeros()
        total = scores.sum(1)
        scores = (sp.diags_array(np.divide(1, total, out=np.zeros_like(total), where=total > 0)) @ scores).tocsr()
        scores.sort_indices()
        return scores

    def facts(self) -> dict[str, Any]:
        """What stands in the student's config.json."""
        return {**asdict(self.settings), "weight": self.weight, "top": self.top, "discount": self.discount}

    def save(self, folder: Path) -> None:
        """Write the counts; `facts` go into the student's config."""
        counts = self.counts
        save_file({"values": counts.data, "items": counts.indices, "offsets": counts.indptr}, folder / FILE)

    @staticmethod
    def load(folder: Path, facts: dict[str, Any]) -> TransitionMemory:
        """Read what `save` wrote."""
        facts = dict(facts)
        weight, top, discount = facts.pop("weight"), facts.pop("top"), facts.pop("discount", 0.0)
        parts = load_file(folder / FILE)
        n_items = len(parts["offsets"]) - 1
        counts = sp.csr_array((parts["values"], parts["items"], parts["offsets"]), shape=(n_items, n_items))
        return TransitionMemory(counts, TransitionSettings(**facts), weight, top, discount)


class Candidates(NamedTuple):
    """Items that model or counter propose, each once, -1 for none; all [users, any].

    `log_probs` are the model's log P(v|S), -inf for none; `counter` the counter's probabilities; `familiarity` is
    log(1 + d(v)).
    """

    items: np.ndarray
    log_probs: np.ndarray
    counter: np.ndarray
    familiarity: np.ndarray

    def ranked(self, weight: float, width: int, discount: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """The mixture's ranking, best first, -1 for none, and log p − β · log(1 + d); both [users, up to width]."""
        scores = mixed(self.log_probs, self.counter, weight) - discount * self.familiarity
        order = np.argsort(-scores, axis=1, kind="stable")[:, :width]
        values = np.take_along_axis(scores, order, axis=1)
        return np.where(values > -np.inf, np.take_along_axis(self.items, order, axis=1), PAD), values


def mixed(log_probs: np.ndarray, counter: np.ndarray, weight: float) -> np.ndarray:
    """log((1 − w) · exp(log_probs) + w · counter), of any one shape."""
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log(1 - weight) + log_probs, np.log(weight) + np.log(counter))


def candidates(
    beams: tuple[np.ndarray, np.ndarray],
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    memory: TransitionMemory,
    histories: np.ndarray,
    exclude_bought: bool = True,
) -> Candidates:
    """What a model and the memory propose to users, with both probabilities.

    Args:
        beams: the model's items, -1 for none, and their log P(v|S); both [users, width].
        score: (histories, items, -1 for none [users, k]) -> log P(v|S) [users, k].
        memory: the counter.
        histories: item numbers padded with -1 [users, length].
        exclude_bought: as `rank` does it.
    """
    found, log_probs = beams
    own = memory.probabilities(histories, exclude_bought)
    top = top_of_rows(own, memory.top)
    top = np.where((top[:, :, None] == found[:, None, :]).any(2), PAD, top)
    top = top[:, (top != PAD).any(0)]  # places that nobody needs
    items = np.concatenate([found, top], axis=1)
    if top.shape[1]:
        log_probs = np.concatenate([log_probs, score(histories, top)], axis=1)
    users = np.arange(len(items))[:, None]
    counter = np.where(items == PAD, 0, own[np.broadcast_to(users, items.shape), np.maximum(items, 0)].toarray())
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
    found: Candidates,
    targets: np.ndarray,
    weights: Sequence[float] = WEIGHTS,
    discounts: Sequence[float] = (0.0,),
    k: int = 10,
) -> tuple[tuple[float, float], dict[tuple[float, float], float]]:
    """(weight, discount) with the best NDCG@k, the smaller of equals, and NDCG@k of each; for validation users only."""
    values = {}
    for weight, discount in itertools.product(weights, discounts):
        lists, _ = found.ranked(weight, k, discount)
        values[weight, discount] = float(ndcg(hit_ranks(lists, targets), k).mean())
    return max(values, key=lambda pair: (values[pair], -pair[0], -pair[1])), values
