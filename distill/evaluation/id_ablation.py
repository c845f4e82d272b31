"""Comparing ways to make semantic IDs: combinations of quantiser, embedding and co-occurrence, and their table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jsonargparse.typing import PositiveInt

from distill.baselines import counting
from distill.data.dataset import Dataset, Examples
from distill.metrics import hit_ranks, ndcg, recall
from distill.runtime.config import Seed

METRICS = ("recall@10", "ndcg@10")
HEADS = ("quantiser", "embedding", "co-occurrence", "R@10", "N@10", "collided", "perplexity", "error", "seeds")
FLOOR = "floor: transitions"  # stands in the column of quantisers


@dataclass(frozen=True)
class Config:
    """Compare ways to make semantic IDs."""

    run: Path = Path("runs/ablation")
    """Where everything goes."""
    dataset: Path = Path("runs/scientific/dataset")
    """Data set artifact."""
    configs: Path = Path("configs/scientific")
    """Folder whose embeddings.yaml, semantic_ids.yaml and student.yaml hold what is not varied."""
    quantisers: list[str] = field(default_factory=lambda: ["rqvae", "rkmeans", "pq"])
    """Of build_semantic_ids.py."""
    embedders: list[str] = field(default_factory=lambda: ["tfidf", "minilm"])
    """Of embed_items.py."""
    collaborative: list[str] = field(default_factory=lambda: ["none", "concat"])
    """Of embed_items.py."""
    seeds: list[Seed] = field(default_factory=lambda: [0, 1, 2])
    """Of quantiser and student together."""
    epochs: PositiveInt = 10
    """Of the student."""
    overwrite: bool = False
    """Measure every combination again."""


class Combination(NamedTuple):
    """One way to make semantic IDs, and the seed of quantiser and student."""

    seed: int
    embedder: str
    collaborative: str
    quantiser: str

    @property
    def embeddings_name(self) -> str:
        """Name of its folder of embeddings, which quantisers and seeds share."""
        return f"{self.embedder}-{self.collaborative}"

    @property
    def name(self) -> str:
        """Name of its folders of IDs and student."""
        return f"{self.quantiser}-{self.embeddings_name}-{self.seed}"

    def describe(self) -> dict[str, Any]:
        """Return its columns of the table."""
        return {
            "quantiser": self.quantiser,
            "embedding": self.embedder,
            "co-occurrence": self.collaborative,
            "seed": self.seed,
        }


def combinations(config: Config) -> list[Combination]:
    """List all combinations, seed by seed, so that every combination is measured once before any is repeated."""
    choices = itertools.product(config.seeds, config.embedders, config.collaborative, config.quantisers)
    return [Combination(*choice) for choice in choices]


def measure(lists: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Compute recall@10 and NDCG@10.

    Args:
        lists: ranked items [users, width].
        targets: the right items [users].
    """
    ranks = hit_ranks(lists, targets)
    return {"recall@10": float(recall(ranks, 10).mean()), "ndcg@10": float(ndcg(ranks, 10).mean())}


def measure_floor(dataset: Dataset, examples: Examples) -> dict[str, Any]:
    """Measure the transition counts, tuned on the validation split."""
    model, _ = counting.Transitions.tune(dataset, exclude_bought=True)  # as the students are ranked
    metrics = measure(counting.recommend(model, examples, 10), examples.targets)
    return {"quantiser": FLOOR, "embedding": "–", "co-occurrence": "–", "seed": 0, **metrics}


def quality_columns(report: dict[str, Any]) -> dict[str, float | None]:
    """Select the table's columns from the quality report of semantic IDs; IDs without embeddings have no error."""
    return {
        "collided": report["collision_rate_before"],
        "error": report.get("reconstruction_error"),
        "perplexity": float(np.mean([level["perplexity"] for level in report["per_level"]])),
    }


def table_lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Format one line per combination: mean ± standard deviation over the seeds, best NDCG@10 first, the floor last.

    Args:
        rows: one per combination and seed, and one of the floor.

    Returns:
        Cells in the order of `HEADS`.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["quantiser"], row["embedding"], row["co-occurrence"]), []).append(row)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] == FLOOR, -_mean(item[1], "ndcg@10")))
    return [_line(names, group) for names, group in ordered]


def _line(names: Sequence[str], group: Sequence[dict[str, Any]]) -> list[str]:
    quality = ["–"] * 4
    if group[0].get("collided") is not None:  # the floor has no IDs
        has_error = group[0].get("error") is not None
        quality = [
            f"{_mean(group, 'collided'):.1%}",
            f"{_mean(group, 'perplexity'):.0f}",
            f"{_mean(group, 'error'):.1%}" if has_error else "–",
            str(len(group)),
        ]
    return [*names, *(_with_spread(group, metric) for metric in METRICS), *quality]


def _mean(group: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in group]))


def _with_spread(group: Sequence[dict[str, Any]], key: str) -> str:
    spread = f" ± {np.std([row[key] for row in group], ddof=1):.4f}" if len(group) > 1 else ""
    return f"{_mean(group, key):.4f}{spread}"
