"""A floor that learns nothing but looks at texts: a few hops of the item-transition graph, ranked by similarity.

After "An Embarrassingly Simple Graph Heuristic Reveals Shortcut-Solvable Benchmarks for Sequential Recommendation"
(Han et al. 2026, arXiv 2605.07125): from the last item (or the last two), so many of the items at one hop, so many at
two, and so on; within a hop those most similar to where one started, with a bonus for frequent transitions at the
first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import scipy.sparse as sp

from distill.catalog import PAD, Dataset, Examples
from distill.floors import hide_bought, top_items
from distill.metrics import hit_ranks, ndcg

CHUNK = 512  # users at once
SHIFT = 2.0  # makes similarities positive: zero means that an item is no candidate


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
        self.unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        self.settings = settings

    def recommend(self, examples: Examples, k: int, exclude_bought: bool = True) -> np.ndarray:
        """Top k items: every hop's places, then what the hops have left, then whatever is similar [users, k]."""
        lists = []
        for start in range(0, len(examples), CHUNK):
            histories = examples.histories[start : start + CHUNK]
            free = np.ones((len(histories), len(self.unit)))
            if exclude_bought:
                hide_bought(free, histories, 0.0)
            rings, places = [], []
            for back, budget in enumerate(self.settings.budgets):
                rings += self.rings(histories, back, len(budget))
                places += budget
            similar = self.similarity(histories, 0)[0]
            wanted = [(ring, place) for ring, place in zip(rings, places, strict=True) if place]
            wanted += [(scores, k) for scores in (*rings, similar)]
            picks = []
            for scores, count in wanted:
                best = top_items(scores * free, count)
                row, place = np.nonzero(best != PAD)
                free[row, best[row, place]] = 0
                picks.append(best)
            found = np.concatenate(picks, axis=1)
            order = np.argsort(found == PAD, axis=1, kind="stable")[:, :k]
            lists.append(np.take_along_axis(found, order, axis=1))
        return np.concatenate(lists)

    def rings(self, histories: np.ndarray, back: int, hops: int) -> list[np.ndarray]:
        """For 1, 2, … hops: positive scores of the items just so far from the `back`-th last one [users, n_items]."""
        scores, source, has = self.similarity(histories, back)
        reached = sp.csr_array((has.astype(np.float32), (np.arange(len(has)), source)), shape=scores.shape)
        seen, found = reached.toarray() > 0, []
        for hop in range(hops):
            reached = reached @ self.edges
            ring = (reached.toarray() > 0) & ~seen
            seen |= ring
            value = scores
            if hop == 0:
                bonus = np.log1p(self.counts[source].toarray())
                value = scores + self.settings.alpha * bonus / np.maximum(bonus.max(1, keepdims=True), 1e-12)
            found.append(np.where(ring, value, 0.0))
            reached = sp.csr_array(ring.astype(np.float32))
        return found

    def similarity(self, histories: np.ndarray, back: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cosines with the `back`-th last item, made positive [users, n_items]; that item, and whether there is one."""
        place = (histories != PAD).sum(1) - 1 - back
        has = place >= 0
        source = np.where(has, histories[np.arange(len(histories)), np.maximum(place, 0)], 0)
        return (self.unit[source] @ self.unit.T + SHIFT) * has[:, None], source, has

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
