"""Train a baseline that knows no semantic IDs: SASRec or GRU4Rec, with full cross-entropy.

    python student/baseline.py --network sasrec --config configs/demo/baseline.yaml

With `--loss list`, `rank` or `list+rank` it is also a student: it learns the teacher's candidates beside the next
items. The settings are in `student/baselines/stage.py`, the loop in `student/baselines/loop.py`.
"""

from __future__ import annotations

from distill.runtime.config import run
from student.baselines.stage import Config, make


def main(config: Config) -> None:
    """Train one network unless it is finished."""
    make(config)


if __name__ == "__main__":
    run(main, Config, "demo/baseline.yaml")
