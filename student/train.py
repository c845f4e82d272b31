"""Train a student: one of the variants of the paper (3.1 to 3.3).

    accelerate launch student/train.py --variant dtr --config configs/demo/student.yaml

`dtr` trains a retriever and then a ranker, and saves one recommender; every other variant has one phase. The settings
are in `student/config.py`, the loop in `student/trainer.py`.
"""

from __future__ import annotations

from distill.runtime.config import run
from student import variants
from student.config import ITEM_BACKBONES, Config, baseline_config, check
from student.jobs import make_item_model, make_student


def main(config: Config) -> None:
    """Check the config, then train, once or once per seed."""
    variants.find(config.variant, config.labels)
    check(config)
    if config.backbone in ITEM_BACKBONES:
        make_item_model(baseline_config(config), config.seeds)
    else:
        make_student(config)


if __name__ == "__main__":
    run(main, Config, "demo/student.yaml")
