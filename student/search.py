"""Search a student's settings on the validation split: the trials, one after the other, and their tables.

A trial is one run of student/train.py; its value is the best validation NDCG@10 of its last phase.
`student/trial_plan.py` chooses the settings, with Optuna.
"""

from __future__ import annotations

import csv
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console
from rich.table import Table

from distill.runtime import artifacts
from distill.runtime.errors import UserError
from distill.runtime.folders import discard
from distill.runtime.locks import OutputLock
from distill.runtime.logs import log
from distill.runtime.markdown import markdown_table
from distill.runtime.processes import run_command
from distill.runtime.terminal import cell
from student.jobs import best_validation
from student.search_config import JOURNAL, Config, read_settings

if TYPE_CHECKING:
    from student.trial_plan import TrialPlan

ROOT = Path(__file__).resolve().parents[1]


def search(config: Config) -> None:
    """Run the trials that are missing, and write the tables after each.

    Raises:
        UserError: Optuna is not installed; a space that is none; another process or search has the folder; a student's
            command failed.
    """
    try:
        from student.trial_plan import TrialPlan
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError("Optuna is not installed. Run: pip install -e '.[search]'") from None

    lock = OutputLock(config.folder)
    lock.acquire()
    if config.overwrite:
        (config.folder / JOURNAL).unlink(missing_ok=True)
    plan = TrialPlan(config)
    while (trial := plan.next_trial()) is not None:
        values = ", ".join(f"{name} {value}" for name, value in trial.params.items())
        log.info(f"trial {trial.number} of 0 to {plan.n_trials - 1}: {values}")
        student = trial_folder(config, trial.number)
        run_student([*plan.options(trial.params), "--output", str(student)], config)
        plan.study.tell(trial.number, best_validation(student))
        write_results(plan)
    best = plan.study.best_trial
    log.info(f"search: best validation NDCG@10 {best.value:.4f}, trial {best.number}: {config.folder}/best.yaml")
    lock.release()


def run_student(options: list[str], config: Config) -> None:
    """Train one student; under Accelerate where ACCELERATE_CONFIG names a launch configuration.

    Raises:
        UserError: the command failed.
    """
    launch = [sys.executable]
    if os.environ.get("ACCELERATE_CONFIG"):
        launch = ["accelerate", "launch", "--quiet", "--config_file", os.environ["ACCELERATE_CONFIG"]]
    run_command(*launch, ROOT / "student/train.py", "--config", config.student, *options)


def trial_folder(config: Config, number: int) -> Path:
    """Return the folder of a trial's student."""
    return config.folder / "trials" / f"{number:03d}"


def write_results(plan: TrialPlan) -> None:
    """Write the tables and the best config, and remove the students that are not kept."""
    config = plan.config
    finished = [trial for trial in plan.study.trials if trial.value is not None]
    best, names = plan.study.best_trial, list(plan.space)
    if config.keep == "best":
        for trial in finished:
            folder = trial_folder(config, trial.number)
            if trial.number != best.number and folder.exists():
                discard(folder)
    rows = [[trial.number, *(trial.params[name] for name in names), trial.value] for trial in finished]
    with open(config.folder / "trials.csv", "w", newline="") as file:
        csv.writer(file).writerows([["trial", *names, "valid_ndcg@10"], *rows])
    ranked = sorted(rows, key=lambda row: -row[-1])
    lines = [[str(row[0]), *(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row[1:-1]),
              f"{row[-1]:.4f}"] for row in ranked]  # fmt: skip
    heads = ["trial", *names, "validation N@10"]
    head = f"`{artifacts.command()}`; trial 0: the settings as they are\n\n"
    (config.folder / "search.md").write_text(head + markdown_table(heads, lines))
    settings = read_settings(config.student) | {"run": str(config.run), "variant": config.variant}
    settings |= config.settings | best.params
    path = config.folder / "best.yaml"
    head = f"# accelerate launch student/train.py --config {shlex.quote(str(path))}\n"
    path.write_text(head + yaml.safe_dump(settings, sort_keys=False))
    if len(finished) == plan.n_trials:
        table = Table(*heads)
        for line in lines:
            table.add_row(*map(cell, line))
        Console().print(table)
