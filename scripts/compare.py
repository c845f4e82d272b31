"""Compare two systems user by user, from the lists that `evaluate.py` wrote: difference, interval, paired test.

python scripts/compare.py --evaluation runs/demo/evaluation --a dwr --b transitions
python scripts/compare.py --evaluation runs/demo/evaluation --a dwr --other runs/demo-seed1/evaluation --b dwr
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.evaluation.compare import check_json_file, compare_systems, print_comparison, write_figures
from distill.runtime.config import run


@dataclass(frozen=True)
class Config:
    """Compare two systems: python scripts/compare.py --a NAME --b NAME [--field value ...]."""

    evaluation: Path = Path("runs/demo/evaluation")
    """Evaluation artifact with the lists of a."""
    other: Path | None = None
    """Evaluation artifact with the lists of b (default: the same)."""
    a: str = "dwr"
    """First system."""
    b: str = "transitions"
    """Second system, which is subtracted."""
    json: Path | None = None
    """Also write the figures to this file."""


def main(config: Config) -> None:
    """Compare, write the figures on request, print a table."""
    if config.json:
        check_json_file(config.json)
    comparison = compare_systems(config.evaluation, config.a, config.other or config.evaluation, config.b)
    if config.json:
        write_figures(config.json, config.a, config.b, comparison)
    print_comparison(comparison, config.a, config.b)


if __name__ == "__main__":
    run(main, Config)
