"""Actors of a Ray cluster that work on shards: the pool, and passes until no shard is missing.

An actor (`ShardActor`) is called with a table of one task and returns a table of one result. It returns errors as
columns (`error_columns`): Ray Data would wrap what it raises and take it for the death of an actor.
"""

from __future__ import annotations

import socket
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import pyarrow as pa

from distill.runtime import ray_cluster
from distill.runtime.artifacts import Artifact
from distill.runtime.disk import full_disk_reason
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.runtime.ray_settings import RaySettings, parse_actors

Tool = TypeVar("Tool")
IDLE_PASSES = 3  # in a row that lose all of their shards, before the driver gives up
INIT_DEATHS = 10  # actors that may die in a row while they load a model, as on nodes that are taken away


def result_schema(*columns: tuple[str, pa.DataType]) -> pa.Schema:
    """Name the columns of a result.

    Args:
        columns: what a class of actors returns beside what all return.
    """
    return pa.schema([
        ("shard", pa.int64()),
        *columns,
        ("node", pa.string()),
        ("problem", pa.string()),  # what the user can mend; or, with a traceback, an error that nobody expected
        ("traceback", pa.string()),
    ])  # fmt: skip


class ShardActor(ABC, Generic[Tool]):
    """Does the work of a shard a call; an actor of Ray Data holds it, with its tool, as long as the actor lives.

    Attributes:
        result: columns of a result, from `result_schema`.

    Args:
        open_tool: loads a model and whatever else the work needs.
        versions: the driver's, from `ray_cluster.versions`.
    """

    result: ClassVar[pa.Schema]

    def __init__(self, open_tool: Callable[[], Tool], versions: dict[str, str]):
        self.tool: Tool | None = None
        self.failure = error_columns(partial(self._open, open_tool, versions))

    def __call__(self, tasks: pa.Table) -> pa.Table:
        """Do one task.

        Args:
            tasks: one row, with the shard's number in the column `shard`.

        Returns:
            One row of `result`.
        """
        (task,) = tasks.to_pylist()
        row: dict[str, Any] = {"shard": task["shard"], "node": socket.gethostname()}
        row |= self.failure or error_columns(partial(self._work, task))
        return pa.table({field.name: pa.array([row.get(field.name)], field.type) for field in self.result})

    @abstractmethod
    def work(self, tool: Tool, task: dict[str, Any]) -> dict[str, Any]:
        """Do a task; returns the columns of `result` that are this class's own."""

    def _work(self, task: dict[str, Any]) -> dict[str, Any]:
        assert self.tool is not None
        return self.work(self.tool, task)

    def _open(self, open_tool: Callable[[], Tool], versions: dict[str, str]) -> dict[str, Any]:
        ray_cluster.check_versions(versions)
        self.tool = open_tool()
        return {}


@dataclass(frozen=True)
class ActorPool:
    """Actors of a cluster and their resources.

    Attributes:
        settings: actors, processors, labels of nodes, time limit.
        gpus: GPUs of an actor by default, on clusters that have any.
    """

    settings: RaySettings
    gpus: float

    def results(
        self, actor: type[ShardActor], arguments: tuple[Any, ...], tasks: Sequence[dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows that actors return, in the order in which they arrive; those of actors that die are missing.

        Args:
            actor: the class of the actors.
            arguments: of its constructor.
            tasks: a row each.
        """
        import ray.data

        context = ray.data.DataContext.get_current()
        context.max_errored_blocks = -1  # go on without the shards of an actor that died
        context.max_consecutive_actor_init_deaths = INIT_DEATHS
        context.execution_no_progress_timeout_s = self.settings.ray_timeout
        nodes = ray_cluster.resources_of_nodes()
        gpus = self._actor_gpus(nodes)
        # at least one, for nodes may still join
        fitting = max(1, sum(actors_of_node(node, self.settings.ray_cpus, gpus) for node in nodes))
        fewest, most = parse_actors(self.settings.ray_actors) or (fitting, fitting)
        pool = ray.data.ActorPoolStrategy(
            min_size=min(fewest, len(tasks)),
            max_size=min(most, len(tasks)),
            max_tasks_in_flight_per_actor=1,  # a second task would be lost with the first
        )
        results = ray.data.from_items(list(tasks), override_num_blocks=len(tasks)).map_batches(
            actor,
            fn_constructor_args=arguments,
            batch_size=None,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=self.settings.ray_cpus,
            num_gpus=gpus,
            label_selector=self.settings.ray_labels or None,
            max_restarts=-1,
            # a task of an actor that died fails at once and goes to the next pass. By default it would wait for the
            # actor's restart: for ever, where the node does not come back and the others are full
            max_task_retries=0,
        )
        tables: Any = results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for table in tables:
            yield from table.to_pylist()

    def describe_standstill(self, error: Exception | None) -> str:
        """Describe why no actor answered, as far as the cluster shows it."""
        nodes = ray_cluster.resources_of_nodes()
        parts = [f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes]
        labels = f" on nodes labelled {self.settings.ray_labels}" if self.settings.ray_labels else ""
        reason = f" ({ray_cluster.describe(error)[:300]})" if error else ""
        return (
            f"No shard has been finished within {self.settings.ray_timeout:g} s or {IDLE_PASSES} passes{reason}. An "
            f"actor needs {self.settings.ray_cpus:g} CPUs and {self._actor_gpus(nodes):g} GPUs{labels}; the nodes have "
            f"{'; '.join(parts) or 'nothing'}. If that suffices, actors die, or a shard takes longer: see Ray's logs, "
            "and raise --ray_timeout or lower --shard_rows."
        )

    def _actor_gpus(self, nodes: list[dict[str, float]]) -> float:
        """Return the GPUs that an actor reserves; 0 by default on a cluster that has none."""
        if self.settings.ray_gpus is not None:
            return self.settings.ray_gpus
        return self.gpus if any(node.get("GPU") for node in nodes) else 0


def collect(
    remaining: Callable[[], list[int]],
    results: Callable[[list[int]], Iterator[dict[str, Any]]],
    store: Callable[[dict[str, Any]], bool],
    describe_standstill: Callable[[Exception | None], str],
) -> bool:
    """Let actors work until no shard remains; shards that were lost with an actor or a node go to the next pass.

    Args:
        remaining: lists the shards to do.
        results: yields the actors' results of such shards.
        store: keeps a result; False ends the work.
        describe_standstill: says why nothing gets finished.

    Returns:
        Whether nothing remains; False where `store` ended the work.

    Raises:
        UserError: nothing was finished within the time limit, or by several passes.
    """
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    idle_passes = 0
    while numbers := remaining():
        answers, error = 0, None
        try:
            for result in results(numbers):
                answers += 1
                if not store(result):
                    return False
        except (RayError, ExecutionTimeoutError) as raised:
            error = raised  # such as a finished shard that was lost before it arrived
        idle_passes = 0 if answers else idle_passes + 1
        if idle_passes == IDLE_PASSES or isinstance(error, ExecutionTimeoutError):
            raise UserError(describe_standstill(error))
        if len(numbers) > answers:
            log.info(f"shards done again, whose actors or nodes died: {len(numbers) - answers}")
    return True


def error_columns(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do work that returns columns of a result; if it fails, return the columns that describe the error."""
    try:
        return work()
    except UserError as error:
        return {"problem": str(error)}
    except Exception as error:
        if full_disk_reason(error) is not None:
            return {"problem": f"A disk is full there ({error})."}
        return {"problem": repr(error), "traceback": traceback.format_exc()}


def refuse_failure(result: dict[str, Any], work: str) -> None:
    """Refuse a result whose columns describe an error.

    Args:
        result: a row that an actor returned.
        work: what it should have done, such as "label".

    Raises:
        UserError: the user can mend it; the message names the node.
        RuntimeError: nobody expected it.
    """
    if result["traceback"]:
        raise RuntimeError(f"An actor on node {result['node']} failed:\n{result['traceback']}")
    if result["problem"]:
        raise UserError(
            f"Node {result['node']} cannot {work}: {result['problem']} Finished shards are kept; the same command "
            "goes on from there."
        )


def check_artifact(source: Artifact, expected: str) -> None:
    """Refuse an artifact of a node that is another than where the command was started.

    Args:
        source: as it is there.
        expected: its fingerprint where the command was started.

    Raises:
        UserError: they differ.
    """
    if source.fingerprint != expected:
        raise UserError(
            f"{source.folder} is another {source.kind} there ({source.fingerprint}) than where the command was "
            f"started ({expected}). Copy it to all nodes, or put it on a disk that they share."
        )


def actors_of_node(node: dict[str, float], cpus: float, gpus: float) -> int:
    """Count the actors of some CPUs and GPUs that fit on a node.

    Args:
        node: its resources, CPU and GPU among them.
        cpus: of an actor.
        gpus: of an actor.
    """
    fitting = [node.get(name, 0) // need for name, need in (("CPU", cpus), ("GPU", gpus)) if need]
    return int(min(fitting, default=1))
