"""Breaks off every command of the pipeline and compares what the same command then makes: python -m tests.faults.soak

For each stage the unbroken run is recorded. Then the command is killed (SIGKILL) just before each of its changes to
files and at random moments, over nothing and over an older result; two run at once; the disk is full; and each file
that it reads is cut, altered or swapped. docs/guarantees.md says what must come out. Exit code 1 if anything else did.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console
from rich.table import Table

from distill.runtime.config import Seed, run, suggest
from distill.runtime.errors import UserError

from .damage import try_damage
from .full_disk import try_full_disk
from .kills import try_kills, try_two_runs
from .launches import try_launches
from .processes import preload
from .results import Results
from .stages import LAUNCHED, STAGES, Shop, stages_named
from .trials import Trials, make_shop

CHECKS = ("kills", "two_runs", "full_disk", "damage", "launches")


@dataclass(frozen=True)
class Config:
    """Kill, damage and fill the disk under every command: python -m tests.faults.soak [--field value ...]."""

    stages: list[str] = field(default_factory=list)
    """Names of stages (default: all)."""
    checks: list[str] = field(default_factory=lambda: list(CHECKS))
    """What is tried: kills, two_runs, full_disk, damage, launches."""
    every: PositiveInt = 1
    """Kill at every Nth change to a file."""
    limit: PositiveInt | None = None
    """At most so many kills, full disks and damaged files of each sort, chosen by the seed (default: all)."""
    random: NonNegativeInt = 20
    """Kills at random moments, for each stage."""
    launches: NonNegativeInt = 4
    """Workers of a launch of two processes that are killed, for each training."""
    seed: Seed = 0
    """Of the random moments."""
    root: Path | None = None
    """Folder for all files (default: a temporary one, removed at the end); the run in it is not made again."""
    output: Path | None = None
    """Write the results as JSON here, after each stage."""


def main(config: Config) -> None:
    """Make the shop, try every stage, print the table."""
    check(config)
    root = Path(tempfile.mkdtemp(prefix="soak-")) if config.root is None else config.root.resolve()
    shop = Shop(root)
    preload()
    stages = stages_named(config.stages)
    make_shop(shop, stages)
    results = []
    for stage in stages:
        started = time.monotonic()
        trials = Trials(shop, stage, Results(stage.name), config.seed, config.limit)
        if "kills" in config.checks:
            try_kills(trials, config.every, config.random)
        if "two_runs" in config.checks:
            try_two_runs(trials)
        if "full_disk" in config.checks:
            try_full_disk(trials)
        if "damage" in config.checks:
            try_damage(trials)
        if "launches" in config.checks and stage.name in LAUNCHED:
            try_launches(trials, config.launches)
        trials.results.seconds = round(time.monotonic() - started, 1)
        print(trials.results.line(), flush=True)
        results.append(trials.results)
        if config.output:
            write(config, results)
    show(results)
    if config.root is None:
        shutil.rmtree(root)
    if any(result.faults for result in results):
        sys.exit(1)


def check(config: Config) -> None:
    """Refuse unknown stages and checks.

    Raises:
        UserError: as above.
    """
    for names, known in ((config.stages, [stage.name for stage in STAGES]), (config.checks, CHECKS)):
        for name in names:
            if name not in known:
                raise UserError(f"Unknown name {name!r}. {suggest(name, known)}")


def write(config: Config, results: list[Results]) -> None:
    """Write the settings and the results so far."""
    settings = {name: getattr(config, name) for name in ("every", "limit", "random", "launches", "seed")}
    content = {"settings": settings, "stages": [asdict(result) for result in results]}
    config.output.write_text(json.dumps(content, indent=2) + "\n")


def show(results: list[Results]) -> None:
    """Print a row for each stage, and every fault."""
    table = Table(*Results.COLUMNS)
    for result in results:
        table.add_row(*map(str, result.row()))
    Console(width=160).print(table)
    for result in results:
        for fault in result.faults:
            print(f"{result.stage}: {fault}")


if __name__ == "__main__":
    run(main, Config)
