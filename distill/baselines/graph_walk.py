"""The baseline `graph`: walk a few hops through the item-transition graph, rank by similarity, learn nothing.

After "An Embarrassingly Simple Graph Heuristic Reveals Shortcut-Solvable Benchmarks for Sequential Recommendation"
(Han et al. 2026, arXiv 2605.07125). The walk starts at the last item of the history (or at the last two). Each hop
gets a number of places in the list; they go to the items of that hop that are most similar to the start, with a bonus
for frequent transitions at the first hop.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from distill.baselines.item_scorer import best_of, validation_examples
from distill.data.dataset import PAD, Dataset, Examples
from distill.metrics import hit_ranks, ndcg
from distill.ranking import top_items

CHUNK = 512  # users, or start items, at once
SHORT_HISTORY = 64  # users with longer histories are ranked apart from the others


@dataclass(frozen=True)
class GraphSettings:
    """Where the walk starts, how far it goes, and how many items each hop gives."""

    budgets: tuple[tuple[int, ...], ...] = ((7, 2, 1),)
    """For the last item, the one before it, …: places for each hop. The paper's: (7, 2, 1), or (5, 1) and (3, 1)."""
    alpha: float = 0.5
    """Weight of log(1 + transitions), divided by its largest value at that start, beside the similarity; first hop."""
    both: bool = False
    """Walk transitions backwards too (the paper does not)."""

    def in_words(self) -> str:
        """The settings in a sentence, for notes below a table."""
        starts = ("the last item", "the one before it", "the third last item")
        hops = ("one hop", "two hops", "three hops")
        parts = []
        for start, budget in zip(starts, self.budgets, strict=False):
            places = [f"{count} item{'s' * (count > 1)} {hop} away"
                      for count, hop in zip(budget, hops, strict=False) if count]  # fmt: skip
            parts.append(f"{', '.join(places)} from {start}")
        direction = "in both directions" if self.both else "forward only"
        return f"{'; '.join(parts)}; weight {self.alpha} on transitions, {direction}"


GRID = [
    GraphSettings(budgets, alpha, both)
    for budgets in (((7, 2, 1),), ((10,),), ((5, 1), (3, 1)), ((6,), (4,)))
    for alpha in (0.5, 2.0)
    for both in (False, True)
]


class Ring(NamedTuple):
    """The items at one distance from each start item.

    `items`: best first, -1 for none [starts, length]; `start_of`: row of each user's start in it [users].
    """

    items: np.ndarray
    start_of: np.ndarray


class GraphHeuristic:
    """Recommend by walking the transition graph of the training part.

    Args:
        dataset: its training part is the graph.
        vectors: any item embeddings [n_items, dim].
        settings: see `GraphSettings`.
    """

    def __init__(self, dataset: Dataset, vectors: np.ndarray, settings: GraphSettings):
        values, offsets = dataset.training_sequences()
        self.counts = next_item_counts(values, offsets, dataset.n_items, settings.both)
        self.edges = (self.counts > 0).astype(np.float32)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        self.unit = sp.csr_array(unit) if np.count_nonzero(unit) < 0.1 * unit.size else unit  # one-hot codes are sparse
        self.ties = np.linspace(0, 1e-9, dataset.n_items)  # subtracted, so that equal scores are ranked by item number
        self.settings = settings

    def recommend(self, examples: Examples, k: int, exclude_bought: bool = True) -> np.ndarray:
        """List k items for each history, best first, -1 for none [users, k].

        First each hop's places are filled, then the list is completed by the remaining items of the hops, then by the
        items most similar to the last one.
        """
        histories, lengths = examples.histories, (examples.histories != PAD).sum(1)
        lists = np.full((len(examples), k), PAD)
        # how many items a ring must keep depends on the longest history: rank users of like lengths together
        size = np.ceil(np.log2(np.maximum(lengths, SHORT_HISTORY)))
        for value in np.unique(size):
            rows = np.flatnonzero(size == value)
            lists[rows] = self._recommend(histories[rows, : lengths[rows].max()], k, exclude_bought)
        return lists

    def _recommend(self, histories: np.ndarray, k: int, exclude_bought: bool) -> np.ndarray:
        budgets = self.settings.budgets
        place = (histories != PAD).sum(1)[:, None] - 1 - np.arange(len(budgets))
        starts = np.where(place >= 0, np.take_along_axis(histories, np.maximum(place, 0), axis=1), PAD)
        length = 2 * k + histories.shape[1]  # a list loses bought items and earlier picks
        rings = []
        for back, budget in enumerate(budgets):
            rings += self.rings(starts[:, back], len(budget), length)
        places = [count for budget in budgets for count in budget]
        order = [(ring, count) for ring, count in zip(rings, places, strict=True) if count]
        order += [(ring, k) for ring in (*rings, self.most_similar(starts[:, 0], length))]
        bought = histories if exclude_bought else histories[:, :0]
        return np.concatenate([
            fill_lists(order, slice(begin, begin + CHUNK), bought, k, len(self.ties))
            for begin in range(0, len(histories), CHUNK)
        ])  # fmt: skip

    def most_similar(self, starts: np.ndarray, length: int) -> Ring:
        """The `length` items most similar to each user's start item; PAD starts have none."""
        distinct, start_of = np.unique(starts, return_inverse=True)
        parts = []
        for begin in range(0, len(distinct), CHUNK):
            items = distinct[begin : begin + CHUNK]
            parts.append(top_items(np.where(items[:, None] == PAD, 0, self._similarity(items)), length))
        return Ring(np.concatenate(parts), start_of)

    def rings(self, starts: np.ndarray, hops: int, length: int) -> list[Ring]:
        """The best `length` items at exactly 1, 2, … `hops` hops from each user's start item; PAD starts have none."""
        distinct, start_of = np.unique(starts, return_inverse=True)
        parts = [self._rings(distinct[begin : begin + CHUNK], hops, length)
                 for begin in range(0, len(distinct), CHUNK)]  # fmt: skip
        return [Ring(np.concatenate(lists), start_of) for lists in zip(*parts, strict=True)]

    def _rings(self, starts: np.ndarray, hops: int, length: int) -> list[np.ndarray]:
        """The lists of `rings` for distinct start items [starts, length], one array for each hop."""
        known = starts != PAD
        items = np.where(known, starts, 0)
        similarity = self._similarity(items)
        start_entries = (known.astype(np.float32), (np.arange(len(items)), items))
        frontier = sp.csr_array(start_entries, shape=similarity.shape)
        seen, lists = frontier.toarray() > 0, []
        for hop in range(hops):
            ring = ((frontier @ self.edges).toarray() > 0) & ~seen
            seen |= ring
            scores = similarity
            if hop == 0:
                bonus = np.log1p(self.counts[items].toarray())
                scores = scores + self.settings.alpha * bonus / np.maximum(bonus.max(1, keepdims=True), 1e-12)
            lists.append(top_items(np.where(ring, scores, 0), length))
            frontier = sp.csr_array(ring.astype(np.float32))
        return lists

    def _similarity(self, items: np.ndarray) -> np.ndarray:
        """2 + cosine to all items, so that every item scores above zero, ties by number [items, n_items]."""
        cosine = self.unit[items] @ self.unit.T
        return 2 + np.asarray(cosine.toarray() if sp.issparse(cosine) else cosine) - self.ties

    @staticmethod
    def tune(dataset: Dataset, vectors: np.ndarray, exclude_bought: bool, max_users: int = 2000) -> GraphHeuristic:
        """Choose the settings of `GRID` with the best validation NDCG@10."""
        examples = validation_examples(dataset, max_users)

        def quality(model: GraphHeuristic) -> float:
            lists = model.recommend(examples, 10, exclude_bought)
            return float(ndcg(hit_ranks(lists, examples.targets), 10).mean())

        return best_of((GraphHeuristic(dataset, vectors, settings) for settings in GRID), quality)[0]

    def describe(self) -> dict:
        """The settings as a dictionary."""
        return asdict(self.settings)


def next_item_counts(values: np.ndarray, offsets: np.ndarray, n_items: int, both: bool) -> sp.csr_array:
    """Count how often each item directly follows another, `both` directions on request [n_items, n_items]."""
    sequence_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    step = (sequence_of[1:] == sequence_of[:-1]) & (values[1:] != values[:-1])
    pairs = values[:-1][step], values[1:][step]
    counts = sp.coo_array((np.ones(step.sum()), pairs), shape=(n_items, n_items)).tocsr()
    return (counts + counts.T).tocsr() if both else counts


def fill_lists(order: list[tuple[Ring, int]], users: slice, bought: np.ndarray, k: int, n_items: int) -> np.ndarray:
    """Fill the lists of some users: from each ring in turn, the given number of items that are still free [users, k].

    Args:
        order: rings and how many items each may give.
        users: rows to fill.
        bought: items that may not be recommended, padded with -1 [all users, any].
        k: items a list.
        n_items: catalogue size.
    """
    bought = bought[users]
    unavailable = np.zeros((len(bought), n_items + 1), dtype=bool)
    unavailable[:, PAD] = True  # the last column stands for padding
    np.put_along_axis(unavailable, bought, True, axis=1)
    lists = np.full((len(bought), k), PAD)
    for ring, count in order:
        items = ring.items[ring.start_of[users]]
        free = ~np.take_along_axis(unavailable, items, axis=1)
        free &= free.cumsum(1) <= count
        chosen = np.where(free, items, PAD)
        np.put_along_axis(unavailable, chosen, True, axis=1)
        lists = np.concatenate([lists, chosen], axis=1)
        first = np.argsort(lists == PAD, axis=1, kind="stable")[:, :k]
        lists = np.take_along_axis(lists, first, axis=1)
    return lists
