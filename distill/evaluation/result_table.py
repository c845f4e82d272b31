"""The rows of an evaluation, filled system by system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distill.baselines import names
from distill.data.dataset import Examples
from distill.evaluation.cold import ColdTargets
from distill.evaluation.measures import compare_ndcg, measure_lists, measure_reach
from distill.evaluation.systems import Ranked
from distill.metrics import coordination, coverage
from distill.runtime.logs import log


@dataclass
class ResultTable:
    """The rows and the lists of an evaluation.

    Attributes:
        facts: what all rows begin with: data set, split, users, seed, exclude_bought.
        cutoffs: K of recall, NDCG and diversity; the largest is the length of the lists.
        examples: the users that all systems are evaluated on.
        vectors: embeddings for diversity [n_items, dim].
        counts: interactions of each item in the training part [n_items].
        reachable: whether counting finds the target at all [users].
        cold: the cold items, and the users whose target is one.
        floor: name of the floor; None: rows are not compared with one.
        floor_lists: ranked items of the floor [users, longest cutoff].
        rows: one dictionary a system, as in `metrics.json`.
        lists: ranked items of each system, -1 for none [users, longest cutoff].
        unconstrained: the same of systems that search semantic IDs, without the trie; -1 for an ID that no item has.
    """

    facts: dict[str, Any]
    cutoffs: Sequence[int]
    examples: Examples
    vectors: np.ndarray
    counts: np.ndarray
    reachable: np.ndarray
    cold: ColdTargets
    floor: str | None = None
    floor_lists: np.ndarray | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    lists: dict[str, np.ndarray] = field(default_factory=dict)
    unconstrained: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Length of the lists."""
        return max(self.cutoffs)

    @property
    def at(self) -> int:
        """K of the figures that stand for a system: 10, or the longest cutoff where that is smaller."""
        return min(10, self.longest)

    def add(self, name: str, ranked: Ranked, **further: Any) -> None:
        """Measure a system's lists and add its row.

        Args:
            name: of the system.
            ranked: its lists and the seconds they took.
            further: figures that lists alone do not tell.
        """
        items, targets, at = ranked.items[:, : self.longest], self.examples.targets, self.at
        row = {"system": name, **self.facts, names.FLOOR_KEY: self.floor}
        row |= measure_lists(items, targets, self.cutoffs, self.vectors, self.counts)
        row |= measure_reach(items, targets, self.reachable, at)
        row |= self.cold.measure_lists(items, targets, at)
        row |= {"invalid@10": None, "beam_missed@10": None, "kl_to_truth": None, "parameters": None}
        if self.floor_lists is not None and name != self.floor:
            row[f"ndcg@{at}_above_floor"] = compare_ndcg(items, self.floor_lists, targets, at)
        teacher = self.lists.get("teacher")
        if teacher is not None and name not in names.NOT_LEARNED:
            row["teacher_coverage"] = float(coverage(items, teacher).mean())
            row["teacher_coordination"] = float(coordination(items, teacher).mean())
        row["users_per_s"] = len(self.examples) / max(ranked.seconds, 1e-9)
        self.rows.append(row | further)
        self.lists[name] = items
        log.info(f"{name}: NDCG@{at} {row[f'ndcg@{at}']:.4f}, recall@{at} {row[f'recall@{at}']:.4f}")
