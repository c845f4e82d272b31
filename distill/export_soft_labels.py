"""Write a teacher's soft labels of every training example (paper 3.1 and 3.2): candidates and codeword distributions.

    python distill/export_soft_labels.py --config configs/demo/export.yaml

Shards are written one by one; an export that is killed goes on from the last finished shard. Several processes share
the work: launched (`accelerate launch`, `torchrun`), tasks of a job array (`--shard 3/8`), or started by hand. Each
takes shards that no other process has, and the one that finishes the last shard completes the set (docs/labels.md).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from distill.data.dataset import Dataset
from distill.labels import exporter
from distill.labels.config import Config, EngineSettings, check
from distill.labels.labeller import Labeller, LabelRequest
from distill.runtime import artifacts
from distill.runtime.artifacts import Artifact, ArtifactJob
from distill.runtime.config import run
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs
from distill.teachers.cross_fitting import read_teachers
from distill.teachers.engine import Engine

if TYPE_CHECKING:
    from distill.teachers.item_teacher import ItemTeacher

MAX_HISTORY = 20  # items of history where no language model limits them (paper: 20)


def main(config: Config) -> None:
    """Label the selected examples, or with --dry_run print what that would take."""
    check(config)
    data = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    codes = artifacts.read(config.semantic_ids or config.run / "semantic_ids", "semantic_ids")
    teachers = read_teachers(config.teacher or config.run / "teacher", config)
    output = config.output or config.run / "soft_labels"
    networks = read_item_model(config)
    inputs = [data, codes, *teachers, *networks]
    job = ArtifactJob("soft_labels", config, output, inputs, overwrite=config.overwrite, shared=True)
    if not (config.dry_run or config.overwrite or config.check):
        job.refuse_change()
    if not config.dry_run and exporter.is_complete(job):
        exporter.publish(output, config.push)
        return

    dataset = Dataset.load(data.folder)
    ids = SemanticIDs.load(codes.folder, dataset.n_items)
    config = replace(config, exclude_bought=dataset.resolve_exclude_bought(config.exclude_bought))
    labeller, max_history = open_labeller(config, dataset, ids, teachers, networks)
    examples = exporter.select_examples(dataset, config, max_history)
    request = LabelRequest(config.width, config.keep, config.exclude_bought, config.scope, not config.unconstrained)
    sources = {
        "teacher": " ".join(teacher.fingerprint for teacher in [*teachers, *networks]),
        "mix": config.mix,
        "semantic_ids": codes.fingerprint,
        "dataset": data.fingerprint,
    }
    export = exporter.Exporter(labeller, examples, ids, request, config, config.split, sources)
    if config.dry_run:
        print(export.estimate())
    elif export.export(job):
        exporter.publish(output, config.push)


def read_item_model(config: Config) -> list[Artifact]:
    """Open the network over items that labels; none where it is not in the mix.

    The role holds its fingerprint: it may be another than the one of that name in the run's table.
    """
    if "item_model" not in config.mix:
        return []
    network = artifacts.read(config.item_model or config.run / "baselines" / "setrec", "baseline")
    return [replace(network, role=f"item_teacher-{network.fingerprint[:8]}")]


def open_labeller(
    config: Config, dataset: Dataset, ids: SemanticIDs, teachers: list[Artifact], networks: list[Artifact]
) -> tuple[Labeller, int]:
    """Build the labeller that the config describes; returns also how many items of history it reads."""
    from distill.teachers.build import build_labeller  # torch is not needed where the work is finished
    from distill.teachers.language_model import EngineLabeller

    engines = [open_engine(config, dataset, ids, teacher) for teacher in teachers]
    labellers = [EngineLabeller(engine, dataset, config.batch_size) for engine in engines]
    max_history = min((engine.data.max_history for engine in engines), default=MAX_HISTORY)
    if config.mix.keys() == {"llm"} and not config.folds:
        return labellers[0], max_history
    item_model = open_item_model(networks[0], dataset, config) if networks else None
    mixture = build_labeller(
        config.mix, config.folds, dataset, ids, config.exclude_bought, lambda fold: labellers[fold or 0], item_model
    )
    return mixture, max_history


def open_item_model(network: Artifact, dataset: Dataset, config: Config) -> ItemTeacher:
    """Load a network over items as a teacher: the one place where distill/ imports student/.

    Raises:
        UserError: it is of another catalogue.
    """
    from distill.runtime.devices import choose_device
    from distill.teachers.item_teacher import ScoreTeacher
    from student.item_recommender import ItemRecommender

    device = choose_device(config.device)
    recommender = ItemRecommender.from_pretrained(network.folder, device)
    if recommender.n_items != dataset.n_items:
        raise UserError(f"{network.folder} has {recommender.n_items} items, the data set {dataset.n_items}.")
    score = partial(recommender.score_items, exclude_bought=config.exclude_bought)
    return ScoreTeacher(score, recommender.facts["network"], config.item_temperature)


def open_engine(settings: EngineSettings, dataset: Dataset, ids: SemanticIDs, teacher: Artifact) -> Engine:
    """Load a teacher into its engine: the one place where distill/ imports teacher/."""
    from teacher.engines import opening

    return opening.open_engine(settings, dataset, ids, teacher.folder)


if __name__ == "__main__":
    run(main, Config, "demo/export.yaml")
