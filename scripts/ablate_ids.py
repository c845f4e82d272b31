"""Which semantic IDs recommend best? Quantiser × embedding × co-occurrence → `tiger` on the validation split.

    python scripts/ablate_ids.py --config configs/scientific/ablation.yaml

Every cell runs the real commands (embed_items, build_semantic_ids, student/train) and is then measured on all users'
validation targets; the table ends with the floor. A finished cell is not repeated; a killed command goes on.
"""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from distill.baselines import counting
from distill.data.dataset import Dataset, Examples
from distill.metrics import hit_ranks, ndcg, recall
from distill.runtime import artifacts
from distill.runtime.artifacts import write_json
from distill.runtime.config import run
from distill.runtime.errors import UserError
from distill.runtime.logs import log

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("recall@10", "ndcg@10")
HEAD = ("quantiser", "embedding", "co-occurrence", "R@10", "N@10", "collided", "perplexity", "error", "seeds")


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
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Of quantiser and student together."""
    epochs: int = 10
    """Of the student."""
    overwrite: bool = False
    """Measure every cell anew."""


def main(config: Config) -> None:
    """Run what is missing, seed by seed, then write `ablation.parquet` and `ablation.md`."""
    dataset = Dataset.load(config.dataset)
    examples = dataset.examples("valid")
    rows = []
    cells = list(itertools.product(config.seeds, config.embedders, config.collaborative, config.quantisers))
    for number, (seed, embedder, company, quantiser) in enumerate(cells):
        log.info(f"cell {number + 1} of {len(cells)}: {quantiser}, {embedder}, co-occurrence {company}, seed {seed}")
        rows.append(_cell(config, dataset, examples, quantiser, embedder, company, seed))
    rows.append(_floor(dataset, examples))
    pq.write_table(pa.Table.from_pylist(rows), config.run / "ablation.parquet")
    table = summarise(rows)
    text = f"`{artifacts.command()}`, {len(examples):,} users of the validation split, means ± standard deviation\n\n"
    (config.run / "ablation.md").write_text(text + markdown(table))
    shown = Table(*HEAD)
    for line in table:
        shown.add_row(*line)
    Console().print(shown)


def _cell(
    config: Config, dataset: Dataset, examples: Examples, quantiser: str, embedder: str, company: str, seed: int
) -> dict[str, Any]:
    embeddings = config.run / "embeddings" / f"{embedder}-{company}"
    name = f"{quantiser}-{embedder}-{company}-{seed}"
    ids, student = config.run / "semantic_ids" / name, config.run / "students" / name
    data = ["--dataset", config.dataset]
    _command(
        "scripts/embed_items.py",
        *("--config", config.configs / "embeddings.yaml", *data, "--output", embeddings),
        *("--embedder", embedder, "--collaborative", company),
    )
    _command(
        "scripts/build_semantic_ids.py",
        *("--config", config.configs / "semantic_ids.yaml", *data, "--embeddings", embeddings, "--output", ids),
        *("--quantiser", quantiser, "--seed", seed),
    )
    _command(
        "student/train.py",
        *("--config", config.configs / "student.yaml", *data, "--semantic_ids", ids, "--output", student),
        *("--variant", "tiger", "--epochs", config.epochs, "--seed", seed),
    )
    found = _measured(config, student, examples)
    report = json.loads((ids / "report.json").read_text())
    facts = {"quantiser": quantiser, "embedding": embedder, "co-occurrence": company, "seed": seed}
    about = {"collided": report["collision_rate_before"], "error": report["reconstruction_error"]}
    about["perplexity"] = float(np.mean([level["perplexity"] for level in report["per_level"]]))
    return facts | found | about


def _command(script: str, *words: Any) -> None:
    line = [sys.executable, str(ROOT / script), *map(str, words)]
    if subprocess.run(line).returncode != 0:
        raise UserError(f"This command of the ablation failed: {shlex.join(line)}")


def _measured(config: Config, student: Path, examples: Examples) -> dict[str, float]:
    """Metrics of a student on all examples; kept in the run's folder, under the student's fingerprint."""
    kept = config.run / "metrics" / f"{artifacts.read(student, 'student').fingerprint}.json"
    if not kept.is_file() or config.overwrite:
        from student.recommender import Recommender  # here, because finished cells do without torch

        recommender = Recommender.from_pretrained(student)
        ranks = hit_ranks(recommender.rank_items(examples.histories)[0], examples.targets)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, _metrics(ranks))
    return json.loads(kept.read_text())


def _metrics(ranks: np.ndarray) -> dict[str, float]:
    return {"recall@10": float(recall(ranks, 10).mean()), "ndcg@10": float(ndcg(ranks, 10).mean())}


def _floor(dataset: Dataset, examples: Examples) -> dict[str, Any]:
    model, _ = counting.Transitions.tune(dataset)
    ranks = hit_ranks(counting.recommend(model, examples, 10), examples.targets)
    return {"quantiser": "floor: transitions", "embedding": "–", "co-occurrence": "–", "seed": 0, **_metrics(ranks)}


def summarise(rows: list[dict[str, Any]]) -> list[list[str]]:
    """One line of words a cell, mean ± standard deviation over the seeds, the best NDCG@10 first, the floor last."""
    cells: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["quantiser"], row["embedding"], row["co-occurrence"]), []).append(row)

    def mean(group: list[dict[str, Any]], key: str) -> float:
        return float(np.mean([row[key] for row in group]))

    def spread(group: list[dict[str, Any]], key: str) -> str:
        more = f" ± {np.std([row[key] for row in group], ddof=1):.4f}" if len(group) > 1 else ""
        return f"{mean(group, key):.4f}{more}"

    lines = []
    for cell, group in sorted(cells.items(), key=lambda one: ("floor" in one[0][0], -mean(one[1], "ndcg@10"))):
        about = ["–"] * 4
        if group[0].get("error") is not None:  # the floor has no IDs
            about = [f"{mean(group, 'collided'):.1%}", f"{mean(group, 'perplexity'):.0f}"]
            about += [f"{mean(group, 'error'):.1%}", str(len(group))]
        measured = [spread(group, metric) for metric in METRICS]
        lines.append([*cell, *measured, *about])
    return lines


def markdown(table: list[list[str]]) -> str:
    """The table in Markdown."""
    lines = [HEAD, ["---"] * 3 + ["---:"] * 6, *table]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    run(main, Config, "scientific/ablation.yaml")
