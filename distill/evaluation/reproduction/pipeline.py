"""The commands that make the evaluations of a table; finished artifacts are not made again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from distill.evaluation.reproduction.config import Config
from distill.runtime.config import CONFIGS
from distill.runtime.processes import run_command

ROOT = CONFIGS.parent
EVALUATIONS = {"table1": ("evaluation",), "table2": ("evaluation-valid", "evaluation-ablation")}  # folders of a run
WITHOUT_DISTILL = "dwr-without-distill"  # the one student of table2 that the pipeline does not train


def make_evaluations(config: Config, folder: Path, seed: int) -> None:
    """Run all commands that a table needs.

    Args:
        config: table, data set and raw data.
        folder: of the run.
        seed: of everything that is trained.

    Raises:
        UserError: a command failed.
    """
    configs = CONFIGS / config.dataset
    raw: list[Any] = []
    if config.input:
        raw += ["--input", config.input]
    if config.index:
        raw += ["--index", config.index]
    extras = ["--extras"] if config.table == "table1" else []
    run_command("bash", ROOT / "scripts/run_pipeline.sh", configs, "--run", folder, "--seed", seed, *raw, *extras)
    if config.table == "table2":
        _evaluate_ablation(configs, folder, seed)


def _evaluate_ablation(configs: Path, folder: Path, seed: int) -> None:
    """Train the student without DISTILL, and evaluate the four students of table2 on the validation split."""
    launch = ["--config_file", os.environ.get("ACCELERATE_CONFIG", CONFIGS / "accelerate/cpu.yaml")]
    if "ACCELERATE_CONFIG" not in os.environ:  # said explicitly, or accelerate warns of its own choice
        launch += ["--num_cpu_threads_per_process", os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)]
    common = ("--run", folder, "--seed", seed)
    run_command(
        *("accelerate", "launch", "--quiet", *launch, ROOT / "student/train.py"),
        *("--variant", WITHOUT_DISTILL, "--config", configs / "student.yaml", *common),
        *("--output", folder / "ablation" / WITHOUT_DISTILL),
    )
    for evaluation, students, systems in (
        ("evaluation-valid", "students", "[tiger, distill, dwr]"),
        ("evaluation-ablation", "ablation", f"[{WITHOUT_DISTILL}]"),
    ):
        run_command(
            *(sys.executable, ROOT / "scripts/evaluate.py", "--config", configs / "evaluate.yaml", *common),
            *("--split", "valid", "--students", folder / students, "--systems", systems),
            *("--output", folder / evaluation),
        )


def make_report(config: Config, runs: list[Path], output: Path) -> None:
    """Write the report over the runs of all seeds.

    Raises:
        UserError: the command failed.
    """
    others = f"[{', '.join(map(str, runs[1:]))}]"
    run_command(
        *(sys.executable, ROOT / "scripts/report.py", "--config", CONFIGS / config.dataset / "report.yaml"),
        *("--run", runs[0], "--seeds", others, "--output", output),
    )
