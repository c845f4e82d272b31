"""Compare ways to make semantic IDs: quantiser × embedding × co-occurrence, by `tiger` on the validation split.

    python scripts/ablate_ids.py --config configs/scientific/ablation.yaml

Every combination runs the real commands (embed_items, build_semantic_ids, student/train), then all users' validation
targets are ranked. The table ends with the floor. Finished work is not repeated; an interrupted command continues.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from distill.data.dataset import Dataset, Examples
from distill.evaluation.id_ablation import (
    HEADS,
    Combination,
    Config,
    combinations,
    measure,
    measure_floor,
    quality_columns,
    table_lines,
)
from distill.runtime import artifacts
from distill.runtime.artifacts import write_json
from distill.runtime.config import run
from distill.runtime.logs import log
from distill.runtime.markdown import markdown_table
from distill.runtime.processes import run_command
from distill.runtime.terminal import cell

ROOT = Path(__file__).resolve().parents[1]


def main(config: Config) -> None:
    """Run what is missing, then write `ablation.parquet` and `ablation.md` and print the table."""
    dataset = Dataset.load(config.dataset)
    examples = dataset.examples("valid")
    rows, choices = [], combinations(config)
    for number, choice in enumerate(choices, 1):
        log.info(f"combination {number} of {len(choices)}: {choice.name}")
        rows.append(run_combination(config, choice, examples))
    rows.append(measure_floor(dataset, examples))
    lines = table_lines(rows)
    pq.write_table(pa.Table.from_pylist(rows), config.run / "ablation.parquet")
    head = f"`{artifacts.command()}`, {len(examples):,} users of the validation split, means ± standard deviation\n\n"
    (config.run / "ablation.md").write_text(head + markdown_table(HEADS, lines, text_columns=(0, 1, 2)))
    table = Table(*HEADS)
    for line in lines:
        table.add_row(*map(cell, line))
    Console().print(table)


def run_combination(config: Config, choice: Combination, examples: Examples) -> dict[str, Any]:
    """Make embeddings, IDs and student, and return the combination's row.

    Raises:
        UserError: a command failed.
    """
    embeddings = config.run / "embeddings" / choice.embeddings_name
    ids, student = config.run / "semantic_ids" / choice.name, config.run / "students" / choice.name
    for script, name, *words in (
        ("scripts/embed_items.py", "embeddings", "--output", embeddings, "--embedder", choice.embedder,
         "--collaborative", choice.collaborative),
        ("scripts/build_semantic_ids.py", "semantic_ids", "--embeddings", embeddings, "--output", ids,
         "--quantiser", choice.quantiser, "--seed", choice.seed),
        ("student/train.py", "student", "--semantic_ids", ids, "--output", student, "--variant", "tiger",
         "--epochs", config.epochs, "--seed", choice.seed),
    ):  # fmt: skip
        common = ("--config", config.configs / f"{name}.yaml", "--dataset", config.dataset)
        run_command(sys.executable, ROOT / script, *common, *words)
    report = json.loads((ids / "report.json").read_text())
    return choice.describe() | measure_student(config, student, examples) | quality_columns(report)


def measure_student(config: Config, student: Path, examples: Examples) -> dict[str, float]:
    """Measure a student on all examples; the result is kept in the run's folder, by the student's fingerprint."""
    path = config.run / "metrics" / f"{artifacts.read(student, 'student').fingerprint}.json"
    if not path.is_file() or config.overwrite:
        from student.recommender import Recommender  # here, because finished combinations do without torch

        items, _ = Recommender.from_pretrained(student).rank_items(examples.histories)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measure(items, examples.targets))
    return json.loads(path.read_text())


if __name__ == "__main__":
    run(main, Config, "scientific/ablation.yaml")
