"""Embedding on a Ray cluster: actors embed shards of texts, and the driver writes them as a single process would.

A task holds the texts of a shard, so that nodes need the model alone; its vectors come back as float32 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distill.runtime import checksums, ray_actors, ray_cluster
from distill.runtime.errors import UserError
from distill.runtime.ray_actors import ShardActor, result_schema
from distill.runtime.ray_settings import RaySettings
from distill.semantic_ids.embedders import Encoder
from distill.semantic_ids.embedding_shards import shard_path, write_shard


class ShardEmbedder(ShardActor[Encoder]):
    """Embeds the texts of shards with a model; a task holds them in the column `texts`."""

    result = result_schema(("vectors", pa.large_binary()), ("dim", pa.int64()))  # float32 [texts, dim]

    def work(self, tool: Encoder, task: dict[str, Any]) -> dict[str, Any]:
        """Embed a shard; as `ShardActor.work`."""
        vectors = tool(task["texts"])
        return {"vectors": vectors.astype(np.float32, copy=False).tobytes(), "dim": vectors.shape[1]}


def embed_shards(
    folder: Path,
    shards: Sequence[Sequence[str]],
    open_encoder: Callable[[], Encoder],
    settings: RaySettings,
    progress: Callable[[int], object],
) -> None:
    """Let actors embed the shards without a file, and write the files; within a connection to the cluster.

    Args:
        folder: of the files, named by the shards' numbers; see `shard_path`.
        shards: their texts.
        open_encoder: called by each actor.
        settings: of the actors.
        progress: called with the number of texts of each shard that is written.

    Raises:
        UserError: an actor cannot work; nothing was finished within the time limit, or by several passes.
    """
    pool = ray_actors.ActorPool(settings, 1)

    def remaining() -> list[int]:
        return [number for number in range(len(shards)) if not shard_path(folder, number).is_file()]

    def results(numbers: list[int]) -> Iterator[dict[str, Any]]:
        tasks = [{"shard": number, "texts": list(shards[number])} for number in numbers]
        return pool.results(ShardEmbedder, (open_encoder, ray_cluster.versions()), tasks)

    def store(result: dict[str, Any]) -> bool:
        ray_actors.refuse_failure(result, "embed")
        vectors = np.frombuffer(result["vectors"], np.float32).reshape(-1, result["dim"])
        write_shard(folder, result["shard"], vectors)
        progress(len(vectors))
        return True

    ray_actors.collect(remaining, results, store, pool.describe_standstill)


def check_model(folder: Path, expected: str) -> None:
    """Refuse a node whose model is another than the driver's.

    Args:
        folder: of the model, there.
        expected: the driver's `checksums.fingerprint` of it.

    Raises:
        UserError: it is missing or differs.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not there. Copy the model to all nodes, or put it on a disk that they share.")
    if checksums.fingerprint(folder) != expected:
        raise UserError(f"{folder} holds another model there than where the command was started. Copy it to all nodes.")
