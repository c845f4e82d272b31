"""Evaluate all systems of a run on the same users: baselines, teacher, students, and on demo data the oracle.

python scripts/evaluate.py --config configs/demo/evaluate.yaml
python scripts/evaluate.py --run FOLDER --launcher ray      (actors of a Ray cluster rank for the trained systems)
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from distill.data.dataset import Dataset
from distill.evaluation.config import EvaluationSettings, InputSettings, check
from distill.evaluation.evaluate import Evaluation
from distill.evaluation.inputs import find_inputs
from distill.evaluation.outside_lists import check_names, content_hash, read_outside_lists
from distill.evaluation.ranked_lists import write_ranked_lists
from distill.evaluation.ray_rank import SHARDS, rank_on_ray
from distill.evaluation.systems import System
from distill.runtime.artifacts import Artifact, ArtifactJob, write_json
from distill.runtime.config import IF_CHANGED, JobSettings, Seed, run
from distill.runtime.devices import check_device, choose_device
from distill.runtime.ray_settings import RaySettings, check_ray
from distill.semantic_ids.ids import SemanticIDs
from student.config import Precision


@dataclass(frozen=True)
class Config(InputSettings, EvaluationSettings, RaySettings, JobSettings):
    """Evaluate all systems of a run: python scripts/evaluate.py [--config FILE] [--field value ...]."""

    output: Path | None = None
    """Where the metrics go (default: RUN/evaluation)."""
    device: str = field(default="auto", metadata={"identity": False})
    """auto, cpu or cuda."""
    teacher_dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata=IF_CHANGED)
    """Type of the teacher's weights; bfloat16 is faster where the processor or GPU has it, and rounds scores."""
    precision: Precision = field(default="auto", metadata=IF_CHANGED)
    """Of the students' matrix products; auto: bfloat16 for students from 4 M parameters, where the processor or GPU
    multiplies in it."""
    shard_rows: PositiveInt = field(default=4096, metadata={"identity": False})
    """With --launcher ray: users that an actor ranks at a time, rounded up to whole batches."""
    seed: Seed = 0
    """Named in the table: the seed of the run's trainings."""


def main(config: Config) -> None:
    """Rank, measure, write `metrics.json`, `lists.parquet` and, without the trie, `unconstrained.parquet`."""
    check(config)
    check_ray(config)
    inputs = find_inputs(config, config, config)
    paths = config.lists or []
    check_names(paths, [artifact.folder.name for artifact in inputs.learned()])
    extra = {f"lists/{path.stem}": content_hash(path) for path in paths}
    output = config.output or config.run / "evaluation"
    job = ArtifactJob("evaluation", config, output, inputs.artifacts(), extra, overwrite=config.overwrite)
    if job.is_finished():
        return

    check_device(config.device)

    from student.systems import MemoryMixture  # with torch: slow to import

    dataset = Dataset.load(inputs.dataset.folder)
    ids, vectors, texts = inputs.load_tables(dataset.n_items)
    facts = {"dataset": config.run.name, "split": config.split, "seed": config.seed}
    evaluation = Evaluation(config, dataset, vectors, texts, facts)
    outside = [read_outside_lists(path, dataset, evaluation.examples, config.split) for path in paths]
    load = partial(load_system, device=config.device, dtype=config.teacher_dtype, precision=config.precision)
    systems = (load(artifact, dataset, ids) for artifact in inputs.learned())  # one at a time
    on_ray = config.launcher == "ray"
    with job.write(resume=on_ray) as folder:
        ranked = None
        if on_ray:
            gpus = 0 if config.device == "cpu" else 1
            shards = folder / SHARDS
            ranked = rank_on_ray(evaluation, inputs, load, MemoryMixture, shards, config, gpus, config.shard_rows)
        table = evaluation.run(inputs.not_learned, systems, MemoryMixture, ranked)
        for lists in outside:
            evaluation.add_outside(lists)
        write_json(folder / "metrics.json", table.rows)
        write_ranked_lists(folder / "lists.parquet", table.examples, table.lists)
        write_ranked_lists(folder / "unconstrained.parquet", table.examples, table.unconstrained)
        shutil.rmtree(folder / SHARDS, ignore_errors=True)


def load_system(
    artifact: Artifact, dataset: Dataset, ids: SemanticIDs | None, device: str, dtype: str, precision: Precision
) -> System:
    """Load a trained system, here or on a node; `dtype` is that of a teacher, `precision` that of a student."""
    check_device(device)
    from student.systems import load_student_system
    from teacher.systems import load_teacher_system

    device = choose_device(device)
    if artifact.kind == "teacher":
        return load_teacher_system(artifact, dataset, ids, device, dtype)
    return load_student_system(artifact, device, precision)


if __name__ == "__main__":
    run(main, Config, "demo/evaluate.yaml")
