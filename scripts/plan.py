"""Plan a large run: bytes, FLOPs, hours and money of every stage, the export's failures, and what breaks first.

python scripts/plan.py --users 1e8 --items 1e8 --interactions 1e10 --teacher llama-7b --nodes 64
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import PositiveInt

from distill.estimates.hardware import read_hardware
from distill.estimates.plan import make_plan
from distill.estimates.workload import Workload
from distill.runtime.artifacts import write_json
from distill.runtime.config import Seed, run
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class Config(Workload):
    """Plan a large run: python scripts/plan.py [--field value ...]. Estimates, not measurements: see docs/scale.md."""

    nodes: PositiveInt = 64
    """GPU nodes for embeddings, teacher and labels."""
    hardware: Path | None = None
    """YAML file with the assumptions that differ from configs/scale/hardware.yaml: machines, prices, utilisation."""
    json: Path | None = None
    """Also write everything to this file."""
    seed: Seed = 0  # type: ignore[valid-type]
    """Seed of the simulated failures."""


def main(config: Config) -> None:
    """Estimate, write the figures on request, print the tables."""
    if config.json is not None:
        from distill.evaluation.compare import check_json_file  # late, so that `--help` is fast

        check_json_file(config.json)
    plan = make_plan(config, read_hardware(config.hardware), config.nodes, config.seed)
    if config.json is not None:
        try:
            write_json(config.json, plan.as_dict())
        except OSError as error:
            raise UserError(f"--json {config.json} cannot be written: {error.strerror}.") from None
    from distill.estimates.table import show

    show(plan)


if __name__ == "__main__":
    run(main, Config)
