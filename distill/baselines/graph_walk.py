"""A floor that learns nothing but looks at texts: a few hops of the item-transition graph, ranked by similarity.

After "An Embarrassingly Simple Graph Heuristic Reveals Shortcut-Solvable Benchmarks for Sequential Recommendation"
(Han et al. 2026, arXiv 2605.07125): from the last item (or the last two), so many of the items at one hop, so many at
two, and so on; within a hop those most similar to where one started, with a bonus for frequent transitions at the
first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from distill.data.dataset import PAD, Dataset, Examples
from distill.metrics import hit_ranks, ndcg

CHUNK = 512  # users, or items to start from, at once


@dataclass(frozen=True)
class GraphSettings:
    """Whence, how far, and how many."""

    budgets: tuple[tuple[int, ...], ...] = ((7, 2, 1),)
    """For the last item, the one before it, …: places for each hop. The paper's: (7, 2, 1), or (5, 1) and (3, 1)."""
    alpha: float = 0.5
    """Weight of log(1 + transitions), scaled by the source's largest, beside the similarity; at the first hop."""
    both: bool = False
    """Walk transitions backwards too (the paper does not)."""


GRID = [
    GraphSettings(budgets, alpha, both)
    for budgets in (((7, 2, 1),), ((10,),), ((5, 1), (3, 1)), ((6,), (4,)))
    for alpha in (0.5, 2.0)
    for both in (False, True)
]


class Ring(NamedTuple):
    """Ranked items of each source, -1 for none [sources, longest], and each user's source [users]; many share one."""

    items: np.ndarray
    of: np.ndarray


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Item numbers of the k highest scores, best first, -1 where they are −∞ [rows, k]."""
    k = min(k, scores.shape[1])
    part = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(scores, part, axis=1)
    order = np.argsort(-values, axis=1)
    lists = np.take_along_axis(part, order, axis=1)
    return np.where(np.take_along_axis(values, order, axis=1) > -np.inf, lists, PAD)


def fill(wanted: list[tuple[Ring, int]], users: slice, bought: np.ndarray, k: int) -> np.ndarray:
    """Each user's first k items: from each ring in turn so many that are neither bought nor taken [users, k]."""
    bought = bought[users]
    found = np.full((len(wanted[0][0].of[users]), k), PAD)
    for ring, count in wanted:
        items = ring.items[ring.of[users]]
        gone = np.concatenate([bought, found], axis=1)
        fresh = (items != PAD) & ~(items[:, :, None] == gone[:, None, :]).any(2)
        fresh &= fresh.cumsum(1) <= count
        found = np.concatenate([found, np.where(fresh, items, PAD)], axis=1)
        order = np.argsort(found == PAD, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(found, order, axis=1)
    return found


class GraphHeuristic:
    """The heuristic on the transitions of the training part.

    Args:
        dataset: whose training part is the graph.
        vectors: any item embeddings [n_items, dim].
        settings: see there.
    """

    def __init__(self, dataset: Dataset, vectors: np.ndarray, settings: GraphSettings):
        values, offsets = dataset.training_sequences()
        owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        step = (owner[1:] == owner[:-1]) & (values[1:] != values[:-1])
        pairs = values[:-1][step], values[1:][step]
        counts = sp.coo_array((np.ones(step.sum()), pairs), shape=(dataset.n_items, dataset.n_items)).tocsr()
        self.counts = (counts + counts.T).tocsr() if settings.both else counts
        self.edges = (self.counts > 0).astype(np.float32)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        self.unit = sp.csr_array(unit) if np.count_nonzero(unit) < 0.1 * unit.size else unit  # one-hot codes are sparse
        self.ties = np.linspace(0, 1e-9, dataset.n_items)  # equal scores go by item number
        self.settings = settings

    def recommend(self, examples: Examples, k: int, exclude_bought: bool = True) -> np.ndarray:
        """Top k items: every hop's places, then what the hops have left, then whatever is similar [users, k]."""
        histories, budgets = examples.histories, self.settings.budgets
        place = (histories != PAD).sum(1)[:, None] - 1 - np.arange(len(budgets))  # of the last items [users, budgets]
        source = np.where(place >= 0, np.take_along_axis(histories, np.maximum(place, 0), axis=1), PAD)
        # what a list may lose to bought items and to earlier picks
        longest = k + histories.shape[1] + k
        rings = [
            ring for back, budget in enumerate(budgets) for ring in self.rings(source[:, back], len(budget), longest)
        ]
        places = [place for budget in budgets for place in budget]
        similar = self.rings(source[:, 0], 0, longest)[-1]
        wanted = [(ring, place) for ring, place in zip(rings, places, strict=True) if place]
        wanted += [(ring, k) for ring in (*rings, similar)]
        return np.concatenate([
            fill(wanted, slice(start, start + CHUNK), histories if exclude_bought else histories[:, :0], k)
            for start in range(0, len(examples), CHUNK)
        ])  # fmt: skip

    def rings(self, sources: np.ndarray, hops: int, longest: int) -> list[Ring]:
        """The best `longest` items at 1, 2, … hops from each source; without hops, the most similar of all items."""
        starts, of = np.unique(sources, return_inverse=True)
        parts = []
        for begin in range(0, len(starts), CHUNK):
            some = starts[begin : begin + CHUNK]
            has = some != PAD
            at = np.where(has, some, 0)
            similar = self.unit[at] @ self.unit.T
            similar = np.asarray(similar.toarray() if sp.issparse(similar) else similar)
            if not hops:
                parts.append([best(np.where(has[:, None], similar - self.ties, -np.inf), longest)])
                continue
            reached = sp.csr_array((has.astype(np.float32), (np.arange(len(at)), at)), shape=similar.shape)
            seen, lists = reached.toarray() > 0, []
            for hop in range(hops):
                reached = reached @ self.edges
                ring = (reached.toarray() > 0) & ~seen
                seen |= ring
                value = similar - self.ties
                if hop == 0:
                    bonus = np.log1p(self.counts[at].toarray())
                    value = value + self.settings.alpha * bonus / np.maximum(bonus.max(1, keepdims=True), 1e-12)
                lists.append(best(np.where(ring, value, -np.inf), longest))
                reached = sp.csr_array(ring.astype(np.float32))
            parts.append(lists)
        return [Ring(np.concatenate(lists), of) for lists in zip(*parts, strict=True)]

    @staticmethod
    def tune(dataset: Dataset, vectors: np.ndarray, exclude_bought: bool, max_users: int = 2000) -> GraphHeuristic:
        """The settings of `GRID` with the best validation NDCG@10."""
        examples = dataset.examples("valid")
        if len(examples) > max_users:
            rows = np.random.default_rng(0).choice(len(examples), max_users, replace=False)
            examples = examples.take(np.sort(rows))
        best: tuple[float, GraphHeuristic] | None = None
        for settings in GRID:
            model = GraphHeuristic(dataset, vectors, settings)
            lists = model.recommend(examples, 10, exclude_bought)
            value = float(ndcg(hit_ranks(lists, examples.targets), 10).mean())
            if best is None or value > best[0]:
                best = (value, model)
        return best[1]

    def describe(self) -> dict:
        """The settings, for reports."""
        return asdict(self.settings)
