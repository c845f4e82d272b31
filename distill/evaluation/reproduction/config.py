"""Settings of a reproduction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Config:
    """Reproduce a table of the paper: python scripts/reproduce.py table1|table2 --dataset NAME [--field value ...]."""

    table: Literal["table1", "table2"] = "table1"
    """Which table; may be given first, without the option's name."""
    dataset: str = "demo"
    """A folder of configs/."""
    run: Path | None = None
    """Folder of the first seed's run (default: runs/DATASET); the others' are RUN-seedN."""
    input: Path | None = None
    """Raw data, for prepare_data."""
    index: Path | None = None
    """Semantic IDs as LC-Rec publishes them, for build_semantic_ids."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Of everything that is trained."""
    make: bool = True
    """Run what is missing; otherwise only gather evaluations that exist."""
    output: Path | None = None
    """Where table1.csv, .md and .png go (default: RUN/reproduce)."""

    def runs(self) -> list[Path]:
        """Return the folder of each seed's run."""
        first = self.run or Path("runs") / self.dataset
        return [first, *(first.with_name(f"{first.name}-seed{seed}") for seed in self.seeds[1:])]
