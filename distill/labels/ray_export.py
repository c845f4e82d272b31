"""The export on a Ray cluster: actors label shards, and the driver writes them as a single process would.

A task is the number of a shard, never rows: which rows a shard has follows from the data set alone, so it does not
matter how Ray divides tasks into blocks. Actors return the encoded file: nodes need no disk in common with the driver.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from distill.data.dataset import Examples
from distill.labels.exporter import Exporter
from distill.labels.labeller import LabelRequest, Labels, Progress, no_progress
from distill.labels.shard_queue import Record, ShardQueue
from distill.runtime import ray_actors, ray_cluster
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from distill.runtime.ray_actors import ShardActor, result_schema
from distill.runtime.ray_settings import RaySettings

NO_SHARD = -1  # a task that asks for the labeller's facts alone


class ShardLabeller(ShardActor[Exporter]):
    """Labels shards with an exporter that has an engine; a task is the shard's number, or NO_SHARD."""

    result = result_schema(
        ("content", pa.large_binary()),  # of the shard's file
        ("quality", pa.string()),  # JSON
        ("facts", pa.string()),  # JSON
        ("tokens", pa.int64()),  # that the engine read for the shard
    )

    def work(self, tool: Exporter, task: dict[str, Any]) -> dict[str, Any]:
        """Label a shard; as `ShardActor.work`."""
        labeller = tool.labeller
        counters: Callable[[], dict[str, int]] = getattr(labeller, "counters", dict)
        before = counters().get("tokens", 0)
        columns: dict[str, Any] = {}
        if task["shard"] != NO_SHARD:
            content, quality = tool.label_shard(task["shard"], no_progress)
            columns = {"content": content, "quality": json.dumps(quality)}
        return columns | {"facts": json.dumps(labeller.facts()), "tokens": counters().get("tokens", 0) - before}


class ReportedLabeller:
    """Stands for the actors' labellers in the driver: their facts and counters, as results report them.

    Implements `Labeller`, but for the labelling.
    """

    def __init__(self) -> None:
        self.reported: dict[str, Any] | None = None
        self.tokens = 0

    def add(self, facts: dict[str, Any], tokens: int) -> None:
        """Take over what a result reports.

        Raises:
            UserError: actors have labellers that differ.
        """
        if self.reported not in (None, facts):
            raise UserError(f"The actors' engines differ: {self.reported} and {facts}. Install the same everywhere.")
        self.reported, self.tokens = facts, self.tokens + tokens

    def facts(self) -> dict[str, Any]:
        """Return the facts; there are some once an actor has answered."""
        assert self.reported is not None
        return self.reported

    def counters(self) -> dict[str, int]:
        """Return how many tokens all engines have read."""
        return {"tokens": self.tokens} if self.tokens else {}

    def label(self, examples: Examples, request: LabelRequest, progress: Progress) -> Labels:
        """Not in the driver: it has no engine."""
        raise NotImplementedError

    def log_prob(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """Not in the driver: it has no engine."""
        raise NotImplementedError


@dataclass(frozen=True)
class RayExporter(Exporter):
    """An exporter whose shards are labelled by actors of a Ray cluster.

    Attributes:
        labeller: what the actors report.
        cluster: address, actors and their resources.
        gpus: GPUs of an actor on clusters that have any.
        open_exporter: called by each actor; returns an exporter with an engine.
    """

    labeller: ReportedLabeller
    cluster: RaySettings
    gpus: float
    open_exporter: Callable[[], Exporter]

    def export(self, job: ArtifactJob) -> bool:
        """Do as `Exporter.export` on the cluster, which is joined before anything is written.

        Raises:
            UserError: as there; or the cluster cannot be joined.
        """
        with ray_cluster.connect(self.cluster.ray_address):
            return super().export(job)

    def label_shards(self, queue: ShardQueue, numbers: range, progress: Progress) -> bool:
        """Let actors label the unfinished shards among `numbers`, and write them; as `Exporter.label_shards`.

        Shards that were lost with an actor or a node are labelled in the next pass.

        Raises:
            UserError: an actor cannot work; nothing was finished within the time limit, or by several passes.
        """

        def remaining() -> list[int]:
            missing = [number for number in numbers if queue.record(number) is None]
            return missing or ([NO_SHARD] if self.labeller.reported is None else [])

        return ray_actors.collect(
            remaining,
            self._results,
            lambda result: self._store(queue, result, progress),
            self._pool.describe_standstill,
        )

    @property
    def _pool(self) -> ray_actors.ActorPool:
        return ray_actors.ActorPool(self.cluster, self.gpus)

    def _results(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield results in the order in which they arrive; shards of actors that die are missing."""
        tasks = [{"shard": number} for number in numbers]
        return self._pool.results(ShardLabeller, (self.open_exporter, ray_cluster.versions()), tasks)

    def _store(self, queue: ShardQueue, result: dict[str, Any], progress: Progress) -> bool:
        """Write the shard of a result; False if another process has finished the set meanwhile.

        Raises:
            UserError: the actor could not work.
        """
        ray_actors.refuse_failure(result, "label")
        self.labeller.add(json.loads(result["facts"]), result["tokens"])
        number = result["shard"]
        if number == NO_SHARD:
            return True

        def write(number: int) -> Record:
            data = queue.job.partial / "data"
            return self.write(data, number, result["content"], json.loads(result["quality"]))

        continues = queue.make_shard(number, write)
        progress(int(self.bounds[number + 1] - self.bounds[number]))
        return continues
