"""Settings of a search."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse.typing import PositiveInt

from distill.runtime.config import Seed

JOURNAL = "journal.log"


@dataclass(frozen=True)
class Config:
    """Search a student's settings: python scripts/search.py [--config FILE] [--field value ...]."""

    run: Path = Path("runs/demo")
    """Folder of the run, which has what the student reads."""
    student: Path = Path("configs/demo/student.yaml")
    """Settings of the student that are not searched."""
    variant: str = "dwr"
    """The student's variant."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Further settings of the student, over those of the file."""
    space: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Setting to its range: {low: 0.001, high: 0.1}, with log: true on a logarithmic scale, whole numbers where both
    ends are; or {choices: [a, b]}."""
    trials: PositiveInt = 20
    """Trials in all, the settings as they are among them. More continue a finished search."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Tree-structured Parzen estimator (Optuna's default), random values, or all combinations of choices."""
    seed: Seed = 0
    """Of the sampler; the students' own seed is one of their settings."""
    keep: Literal["best", "all"] = "best"
    """Students that are kept."""
    output: Path | None = None
    """Folder of the search (default: RUN/search/VARIANT)."""
    overwrite: bool = False
    """Forget an earlier search in this folder."""

    @property
    def folder(self) -> Path:
        return self.output or self.run / "search" / self.variant


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file that `parse` has accepted."""
    return yaml.safe_load(path.read_text()) or {}
