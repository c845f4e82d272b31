"""Write a teacher's soft labels of every training example (paper 3.1 and 3.2): candidates and codeword distributions.

    python distill/export_soft_labels.py --config configs/demo/export.yaml

Shards are written one by one; an export that is killed goes on from the last finished shard. Several processes share
the work: launched (`accelerate launch`, `torchrun`), tasks of a job array (`--shard 3/8`), or started by hand. Each
takes shards that no other process has, and the one that finishes the last shard completes the set (docs/labels.md).
On a Ray cluster (`--launcher ray`) actors label the shards, and this process writes them.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from distill.data.dataset import Dataset
from distill.labels import exporter
from distill.labels.config import Config, EngineSettings, check
from distill.labels.labeller import Labeller
from distill.runtime import checksums
from distill.runtime.artifacts import Artifact, ArtifactJob
from distill.runtime.config import run
from distill.runtime.errors import UserError
from distill.semantic_ids.embeddings import text_vectors
from distill.semantic_ids.ids import SemanticIDs
from distill.teachers.engine import Engine
from distill.teachers.export_inputs import (
    MAX_HISTORY,
    Inputs,
    describe_export,
    load_inputs,
    open_reused,
    read_inputs,
    read_inputs_on_node,
    with_absolute_paths,
)

if TYPE_CHECKING:
    from distill.labels.ray_export import RayExporter
    from distill.teachers.item_teacher import ItemTeacher


def main(config: Config) -> None:
    """Label the selected examples, or with --dry_run print what that would take."""
    check(config)
    inputs = read_inputs(config)
    output = config.output or config.run / "soft_labels"
    extra = {"reuse": inputs.reused.fingerprint} if inputs.reused else {}
    reads = [config.reuse, config.reuse_dataset]
    job = ArtifactJob("soft_labels", config, output, list(inputs), extra, config.overwrite, reads, shared=True)
    if not (config.dry_run or config.overwrite or config.check):
        job.refuse_change()
    if not config.dry_run and exporter.is_complete(job):
        exporter.publish(output, config.push)
        return
    if config.dry_run:
        print(open_exporter(config, inputs).estimate())
        return
    export = open_ray_exporter(config, inputs) if config.launcher == "ray" else open_exporter(config, inputs)
    if export.export(job):
        exporter.publish(output, config.push)


def open_exporter(config: Config, inputs: Inputs) -> exporter.Exporter:
    """Load all that labels are made from, engines too."""
    dataset, ids, config = load_inputs(config, inputs)
    labeller, max_history = open_labeller(config, dataset, ids, inputs)
    details = describe_export(config, inputs, dataset, ids, max_history)
    earlier = open_reused(config, inputs, dataset, ids, max_history, details[-1])
    return exporter.Exporter(labeller, *details, earlier=earlier)


def open_ray_exporter(config: Config, inputs: Inputs) -> RayExporter:
    """Load what the driver of a Ray cluster needs, which is no engine."""
    from distill.labels.ray_export import RayExporter, ReportedLabeller

    dataset, ids, config = load_inputs(config, inputs)
    details = describe_export(config, inputs, dataset, ids, inputs.max_history())
    earlier = open_reused(config, inputs, dataset, ids, inputs.max_history(), details[-1])
    gpus = 0 if config.device == "cpu" else config.tensor_parallel_size if config.engine == "vllm" else 1
    open_on_node = partial(open_exporter_on_node, with_absolute_paths(config), inputs.fingerprints())
    return RayExporter(ReportedLabeller(), *details, config, gpus, open_on_node, earlier=earlier)


def open_exporter_on_node(config: Config, fingerprints: list[str]) -> exporter.Exporter:
    """Do `open_exporter` in an actor, from the inputs of these fingerprints."""
    if config.no_verify:
        os.environ[checksums.SWITCH] = "1"
    return open_exporter(config, read_inputs_on_node(config, fingerprints))


def open_labeller(config: Config, dataset: Dataset, ids: SemanticIDs, inputs: Inputs) -> tuple[Labeller, int]:
    """Build the labeller that the config describes; returns also how many items of history it reads."""
    from distill.teachers.build import build_labeller  # torch is not needed where the work is finished
    from distill.teachers.language_model import EngineLabeller

    engines = [open_engine(config, dataset, ids, teacher) for teacher in inputs.teachers]
    labellers = [EngineLabeller(engine, dataset, config.batch_size) for engine in engines]
    max_history = min((engine.data.max_history for engine in engines), default=MAX_HISTORY)
    if config.mix.keys() == {"llm"} and not config.folds:
        return labellers[0], max_history
    networks = [open_item_model(network, dataset, config) for network in inputs.networks]
    texts = text_vectors(inputs.texts[0], dataset.n_items) if inputs.texts else None
    mixture = build_labeller(
        config.mix, config.folds, dataset, ids, config.exclude_bought, lambda fold: labellers[fold or 0],
        lambda fold: networks[fold or 0], texts,
    )  # fmt: skip
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
