"""Train a network over items, without semantic IDs: most with full cross-entropy.

SASRec, GRU4Rec, FMLP-Rec, Lite-LLM4Rec, E4SRec, DreamRec or SETRec:

    python student/baseline.py --network sasrec --config configs/demo/baseline.yaml

With `--loss list`, `rank` or `list+rank` it also learns a teacher's candidates. `student/train.py --backbone sasrec`
trains the same by the name of a variant.
"""

from __future__ import annotations

from distill.runtime.config import run
from student.config import BaselineConfig
from student.jobs import make_item_model


def main(config: BaselineConfig) -> None:
    """Train one network unless it is finished."""
    make_item_model(config)


if __name__ == "__main__":
    run(main, BaselineConfig, "demo/baseline.yaml")
