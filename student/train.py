"""Train a student: one of the variants of the paper (3.1 to 3.3).

    accelerate launch student/train.py --variant dtr --config configs/demo/student.yaml

`dtr` trains a retriever and then a ranker, and saves one recommender; every other variant has one phase. The settings
are in `student/config.py`, the loop in `student/trainer.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill.data.dataset import Dataset
from distill.runtime.artifacts import Artifact
from distill.runtime.config import run
from distill.semantic_ids.ids import SemanticIDs
from student import variants
from student.config import ITEM_BACKBONES, Config
from student.config_checks import baseline_config, check
from student.jobs import make_item_model, make_student

if TYPE_CHECKING:
    from distill.teachers.engine import Engine


def main(config: Config) -> None:
    """Check the config, then train, once or once per seed."""
    variants.find(config.variant, config.labels)
    check(config)
    if config.backbone in ITEM_BACKBONES:
        make_item_model(baseline_config(config), config.seeds)
    else:
        make_student(config, open_teacher)


def open_teacher(teacher: Artifact, dataset: Dataset, ids: SemanticIDs, device: str, dtype: str) -> Engine:
    """Load the teacher that is asked during the training: the one place where student/ imports teacher/."""
    from teacher.engines.hf import HFEngine  # not vLLM, which would take the memory of the device that trains

    return HFEngine.load(teacher.folder, dataset, ids, device, dtype)


if __name__ == "__main__":
    run(main, Config, "demo/student.yaml")
