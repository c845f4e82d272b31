"""Cut a data set into the logs of several days, to try an incremental training (docs/scale.md, Day by day).

python scripts/split_days.py --dataset runs/demo/dataset --output data/days
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import restricted_number_type

from distill.data.dataset import Dataset
from distill.data.days import write_days
from distill.runtime.config import Seed, run
from distill.runtime.new_folder import new_folder

Days = restricted_number_type("Days", int, [(">=", 2), ("<=", 100)])
"""A whole number from 2 to 100."""


@dataclass(frozen=True)
class Config:
    """Cut a data set into days: python scripts/split_days.py --dataset FOLDER --output FOLDER [--field value ...]."""

    dataset: Path = Path("runs/demo/dataset")
    """Data set to cut."""
    output: Path = Path("data/days")
    """New folder for day1, day2, ...: tables with everything so far, for prepare_data.py --format table."""
    days: Days = 3  # type: ignore[valid-type]
    """Number of days."""
    seed: Seed = 0
    """Seed of the items that later days launch."""


def main(config: Config) -> None:
    """Write a folder for each day."""
    dataset = Dataset.load(config.dataset)
    with new_folder(config.output) as folder:
        write_days(dataset, config.days, config.seed, folder)


if __name__ == "__main__":
    run(main, Config)
