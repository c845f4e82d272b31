"""Settings of a reproduction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from distill.runtime.config import Seed


@dataclass(frozen=True)
class Config:
    """Reproduce a table or figure of the paper: python scripts/reproduce.py table1 --dataset NAME [--field value]."""

    table: Literal["table1", "table2", "table3", "figure1", "figure3", "figure4", "cases"] = "table1"
    """Which table or figure; may be given first, without the option's name."""
    dataset: str = "demo"
    """A folder of configs/."""
    run: Path | None = None
    """Folder of the first seed's run (default: runs/DATASET); the others' are RUN-seedN."""
    input: Path | None = None
    """Raw data, for prepare_data."""
    index: Path | None = None
    """Semantic IDs as LC-Rec publishes them, for build_semantic_ids."""
    settings: Literal["config", "paper"] = "config"
    """table1, table2: the students of configs/DATASET/student.yaml alone; or beside them the same students with the
    values that the paper gives, configs/paper/student.yaml (RUN/students-paper)."""
    preset: str | None = None
    """Sizes of the students with the paper's settings (default: those of configs/DATASET/student.yaml; the paper's:
    lohrec-13m)."""
    lists: list[Path] | None = None
    """table1: ranked lists of systems outside this project, as scripts/run_peers.sh writes them, a row each beside
    the first seed's."""
    widths: list[PositiveInt] = field(default_factory=lambda: [10, 20, 50, 100])
    """figure1, figure3: beam widths (paper: 10, 20, 50 and 100)."""
    width_users: PositiveInt = 1000
    """figure1, figure3: test users."""
    map_items: PositiveInt = 5000
    """figure4: most items of the map; of more, the seed draws so many."""
    cases_per_group: PositiveInt = 1
    """cases: users drawn from each of the four groups."""
    seeds: list[Seed] = field(default_factory=lambda: [0])
    """Of everything that is trained."""
    make: bool = True
    """Run what is missing; otherwise only gather evaluations that exist."""
    output: Path | None = None
    """Where TABLE.csv, .md and .png go (default: RUN/reproduce)."""

    def runs(self) -> list[Path]:
        """Return the folder of each seed's run."""
        first = self.run or Path("runs") / self.dataset
        return [first, *(first.with_name(f"{first.name}-seed{seed}") for seed in self.seeds[1:])]
