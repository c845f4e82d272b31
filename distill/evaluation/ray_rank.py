"""Ranking on a Ray cluster: actors rank shards of users, and the driver measures their lists as its own.

A task names users and positions, whose histories an actor reads from its own copy of the data set.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distill.baselines.content import Content
from distill.data.dataset import Dataset
from distill.evaluation.evaluate import Evaluation
from distill.evaluation.inputs import Inputs, system_kind, system_name
from distill.evaluation.rank_shards import RankedShards
from distill.evaluation.shard_work import SystemRanker, Work
from distill.evaluation.systems import MakeMixture, Mixture, MixtureRecipe, System
from distill.runtime import checksums, ray_actors, ray_cluster
from distill.runtime.artifacts import Artifact
from distill.runtime.logs import progress_bar
from distill.runtime.ray_actors import ShardActor, result_schema
from distill.runtime.ray_settings import RaySettings
from distill.semantic_ids.embeddings import text_vectors
from distill.semantic_ids.ids import SemanticIDs

SHARDS = "ranked"  # folder of the shards in the working folder
LoadSystem = Callable[[Artifact, Dataset, SemanticIDs | None], System]


class ShardRanker(ShardActor[SystemRanker]):
    """Ranks shards of users with one system at a time; a task is a row of `shard_tasks`."""

    result = result_schema(("content", pa.large_binary()))  # of the shard's file

    def work(self, tool: SystemRanker, task: dict[str, Any]) -> dict[str, Any]:
        """Rank a shard; as `ShardActor.work`."""
        users, positions = np.frombuffer(task["examples"], np.int64).reshape(2, -1)
        work = Work(**{name: task[name] for name in Work._fields})
        return {"content": tool.rank(task["system"], work, users, positions)}


def shard_tasks(ranked: RankedShards) -> list[dict[str, Any]]:
    """Make the tasks of all shards."""
    tasks = []
    for number, shard in enumerate(ranked.shards()):
        examples, work = ranked.parts[shard.system][shard.part]
        pairs = np.stack([examples.users[shard.rows], examples.positions[shard.rows]]).astype(np.int64)
        tasks.append({"shard": number, "system": shard.system, "examples": pairs.tobytes(), **work._asdict()})
    return tasks


def rank_shards(
    ranked: RankedShards,
    open_ranker: Callable[[], SystemRanker],
    settings: RaySettings,
    gpus: float,
    progress: Callable[[int], object],
) -> None:
    """Let actors rank the shards without a file, and write the files; within a connection to the cluster.

    Args:
        ranked: the shards.
        open_ranker: called by each actor.
        settings: of the actors.
        gpus: of an actor, on clusters that have any.
        progress: called with the number of users of each shard that is written.

    Raises:
        UserError: an actor cannot work; nothing was finished within the time limit, or by several passes.
    """
    pool = ray_actors.ActorPool(settings, gpus)
    shards, tasks = ranked.shards(), shard_tasks(ranked)

    def remaining() -> list[int]:
        return [number for number, shard in enumerate(shards) if not ranked.is_ranked(shard)]

    def results(numbers: list[int]) -> Iterator[dict[str, Any]]:
        chosen = [tasks[number] for number in numbers]
        return pool.results(ShardRanker, (open_ranker, ray_cluster.versions()), chosen)

    def store(result: dict[str, Any]) -> bool:
        ray_actors.refuse_failure(result, "rank")
        shard = shards[result["shard"]]
        ranked.write(shard, result["content"])
        progress(len(shard.rows))
        return True

    progress(sum(len(shard.rows) for shard in shards if ranked.is_ranked(shard)))
    ray_actors.collect(remaining, results, store, pool.describe_standstill)


def rank_on_ray(
    evaluation: Evaluation,
    inputs: Inputs,
    load: LoadSystem,
    make_mixture: MakeMixture,
    folder: Path,
    settings: RaySettings,
    gpus: float,
    shard_rows: int,
) -> RankedShards:
    """Let actors of a cluster rank the users for all trained systems; shards that are there remain.

    Args:
        evaluation: users and protocol.
        inputs: the trained systems, and what they read.
        load: loads a trained system, in an actor.
        make_mixture: makes the mixture of the teacher's further rows, in an actor.
        folder: of the shards.
        settings: of cluster and actors.
        gpus: of an actor, on clusters that have any.
        shard_rows: users of a shard, about.

    Raises:
        UserError: as `rank_shards`; or the cluster cannot be joined.
    """
    parts = {system_name(artifact): evaluation.parts_of(system_kind(artifact)) for artifact in inputs.learned()}
    ranked = RankedShards(folder, parts, shard_rows)
    ranked.discard_damaged()
    if all(ranked.is_ranked(shard) for shard in ranked.shards()):
        return ranked  # nothing is left to do, so no cluster is joined
    is_mixed = any(part.work.mixed for of_system in parts.values() for part in of_system.values())
    recipe = evaluation.mixture_recipe(make_mixture) if is_mixed else None
    open_ranker = partial(
        open_ranker_on_node, inputs.with_absolute_folders(), load, evaluation.exclude_bought, recipe,
        checksums.is_switched_off(),
    )  # fmt: skip
    with ray_cluster.connect(settings.ray_address), progress_bar(total=ranked.users, desc="rank", unit="user") as bar:
        rank_shards(ranked, open_ranker, settings, gpus, bar.update)
    return ranked


def open_ranker_on_node(
    inputs: Inputs, load: LoadSystem, exclude_bought: bool, recipe: MixtureRecipe | None, no_verify: bool
) -> SystemRanker:
    """Open in an actor what ranks with the systems of these inputs.

    Raises:
        UserError: an input is missing there, damaged, or another than where the command was started.
    """
    if no_verify:
        os.environ[checksums.SWITCH] = "1"
    reading = recipe.content if recipe else None
    inputs.check_on_node(with_embeddings=reading is not None)
    dataset = Dataset.load(inputs.dataset.folder)
    ids = SemanticIDs.load(inputs.semantic_ids.folder, dataset.n_items) if inputs.semantic_ids else None
    systems = {system_name(artifact): artifact for artifact in inputs.learned()}

    def open_mixture() -> Mixture:
        assert recipe is not None
        if reading is None or inputs.embeddings is None:
            return recipe.open(dataset, None)
        return recipe.open(dataset, Content(text_vectors(inputs.embeddings, dataset.n_items), reading))

    return SystemRanker(
        dataset, lambda name: load(systems[name], dataset, ids), exclude_bought, open_mixture if recipe else None
    )
