"""What an export of labels reads, and what follows from it: examples, the request to the teacher, the index's facts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from distill.data.dataset import Dataset
from distill.data.examples import TargetRanges
from distill.labels.config import Config
from distill.labels.labeller import LAST_LAYER, LabelRequest
from distill.labels.reuse import EarlierLabels, earlier_dataset, open_earlier
from distill.labels.selection import select_targets
from distill.runtime import artifacts, ray_actors
from distill.runtime.artifacts import Artifact
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import SemanticIDs
from distill.semantic_ids.lineage import adopt_teacher
from distill.teachers.cross_fitting import read_folds, read_teachers

MAX_HISTORY = 20  # items of history where no language model limits them (paper: 20)


@dataclass(frozen=True)
class Inputs:
    """The artifacts that an export reads.

    All but the last must agree on what they were made from.

    Attributes:
        dataset: its examples are labelled.
        semantic_ids: whose codewords get probabilities.
        teachers: language models, one a fold.
        networks: over items, of the mix's `item_model`, one a fold.
        texts: embeddings, of the mix's `content`; one or none.
        reused: labels of an earlier data set.
    """

    dataset: Artifact
    semantic_ids: Artifact
    teachers: list[Artifact]
    networks: list[Artifact]
    texts: list[Artifact]
    reused: Artifact | None = None

    def __iter__(self) -> Iterator[Artifact]:
        return iter([self.dataset, self.semantic_ids, *self.teachers, *self.networks, *self.texts])

    def fingerprints(self) -> list[str]:
        """Return the fingerprint of each."""
        return [source.fingerprint for source in self.everything()]

    def everything(self) -> list[Artifact]:
        """List all of them."""
        return [*self, *([self.reused] if self.reused else [])]

    def reads_titles(self) -> bool:
        """Tell whether a teacher reads the titles of the history's items."""
        return any(read_facts(teacher).get("stream_titles", 0) for teacher in self.teachers)

    def max_history(self) -> int:
        """Read how many items of history the teachers take, without loading them."""
        return min((read_facts(teacher)["max_history"] for teacher in self.teachers), default=MAX_HISTORY)


def read_facts(teacher: Artifact) -> dict[str, Any]:
    """Read `teacher.json`."""
    return json.loads((teacher.folder / "teacher.json").read_text())


def read_inputs(config: Config) -> Inputs:
    """Open the artifacts that the config names.

    Raises:
        UserError: one is missing or unfinished; or a fold's teacher is of an earlier data set.
    """
    dataset = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    ids = artifacts.read(config.semantic_ids or config.run / "semantic_ids", "semantic_ids")
    teachers = read_teachers(config.teacher or config.run / "teacher", config)
    reused = artifacts.read(config.reuse, "soft_labels") if config.reuse else None
    teachers = [adopt_teacher(teacher, ids) for teacher in teachers]
    return Inputs(dataset, ids, teachers, read_item_models(config), read_texts(config), reused)


def read_item_models(config: Config) -> list[Artifact]:
    """Open the networks over items that label: none, one, or one a fold.

    The role holds the fingerprint: they may be others than those of that name in the run's table.

    Raises:
        UserError: one is missing, or a fold's was trained on the users that it would label.
    """
    if "item_model" not in config.mix:
        return []
    folder = config.item_model or config.run / ("folds" if config.folds else "baselines") / "setrec"
    networks = read_folds(folder, config.folds, "baseline") if config.folds else [artifacts.read(folder, "baseline")]
    return [replace(network, role=f"item_teacher-{network.fingerprint[:8]}") for network in networks]


def read_texts(config: Config) -> list[Artifact]:
    """Open the embeddings of the items' texts; none where nothing compares them.

    The role holds their fingerprint: they may be others than those that the semantic IDs were made from.
    """
    if "content" not in config.mix:
        return []
    embeddings = artifacts.read(config.embeddings or config.run / "embeddings", "embeddings")
    return [replace(embeddings, role=f"content-{embeddings.fingerprint[:8]}")]


def read_inputs_on_node(config: Config, fingerprints: list[str]) -> Inputs:
    """Open the artifacts on a machine other than the one where the export was started.

    Args:
        config: with absolute paths.
        fingerprints: of the artifacts where the export was started.

    Raises:
        UserError: as `read_inputs`; or one is another than there.
    """
    inputs = read_inputs(config)
    for source, expected in zip(inputs.everything(), fingerprints, strict=True):
        ray_actors.check_artifact(source, expected)
    return inputs


def with_absolute_paths(config: Config) -> Config:
    """Return the config with paths that hold in any working directory."""
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    paths: dict[str, Any] = {name: value.absolute() for name, value in values.items() if isinstance(value, Path)}
    return replace(config, **paths)


def load_inputs(config: Config, inputs: Inputs) -> tuple[Dataset, SemanticIDs, Config]:
    """Load data set and semantic IDs.

    Returns also the config with `exclude_bought` decided by the data, `feature_layers` numbered from 1, and the folder
    of the data set of reused labels, which other machines could not tell.

    Raises:
        UserError: layers that a teacher lacks.
    """
    dataset = Dataset.load(inputs.dataset.folder)
    ids = SemanticIDs.load(inputs.semantic_ids.folder, dataset.n_items)
    exclude_bought = dataset.resolve_exclude_bought(config.exclude_bought)
    layers = resolve_layers(config.feature_layers, inputs.teachers)
    config = replace(config, exclude_bought=exclude_bought, feature_layers=layers)
    if inputs.reused is not None:
        config = replace(config, reuse_dataset=config.reuse_dataset or earlier_dataset(inputs.reused))
    return dataset, ids, config


def resolve_layers(layers: list[int], teachers: list[Artifact]) -> list[int]:
    """Number the layers whose states are stored from 1, ascending; LAST_LAYER, which needs no number, stays.

    Args:
        layers: from 1, or from -1 backwards.
        teachers: language models of one depth, which their configs tell.

    Raises:
        UserError: a layer that a teacher lacks, one that is named twice, or teachers that would number them otherwise.
    """
    if layers == list(LAST_LAYER):
        return layers
    from distill.runtime import models  # imports transformers

    resolved: list[int] = []
    for teacher in teachers:
        config = models.load_config(teacher.folder, f"No teacher at {teacher.folder}", local_files_only=True)
        depth = config.get_text_config().num_hidden_layers
        wrong = [layer for layer in layers if not 1 <= abs(layer) <= depth]
        if wrong or not layers:
            given = f"has no layer {wrong[0]}" if wrong else "is asked for no layer"
            raise UserError(
                f"{teacher.folder} {given}: --feature_layers are 1 to {depth}, or -1 (the last) to -{depth}."
            )
        first, resolved = resolved, sorted(layer % (depth + 1) for layer in layers)
        if first and first != resolved:
            raise UserError(
                f"--feature_layers {layers} are {first} of {teachers[0].folder}, {resolved} of {teacher.folder}."
            )
        if len(set(resolved)) < len(resolved):
            raise UserError(f"--feature_layers {layers} names a layer of {teacher.folder} ({depth} layers) twice.")
    return resolved


def describe_export(
    config: Config, inputs: Inputs, dataset: Dataset, ids: SemanticIDs, max_history: int
) -> tuple[TargetRanges, SemanticIDs, LabelRequest, Config, str, dict[str, Any]]:
    """Collect the arguments of an `Exporter` after its labeller; `config` is that of `load_inputs`."""
    targets = select_targets(dataset, config, max_history)
    assert config.exclude_bought is not None
    request = LabelRequest(
        config.width, config.keep, config.exclude_bought, config.scope, not config.unconstrained, config.features,
        tuple(config.feature_layers),
    )  # fmt: skip
    sources = {
        "teacher": " ".join(source.fingerprint for source in [*inputs.teachers, *inputs.networks, *inputs.texts]),
        "mix": config.mix,
        "semantic_ids": inputs.semantic_ids.fingerprint,
        "dataset": inputs.dataset.fingerprint,
    }
    return targets, ids, request, config, config.split, sources


def open_reused(
    config: Config, inputs: Inputs, dataset: Dataset, ids: SemanticIDs, max_history: int, sources: dict[str, Any]
) -> EarlierLabels | None:
    """Open the labels that --reuse names; None without it. Arguments as those and the last result of `describe_export`.

    Raises:
        UserError: they do not hold here (`open_earlier`).
    """
    if inputs.reused is None:
        return None
    return open_earlier(config, sources["teacher"], dataset, ids, max_history, inputs.reads_titles())
