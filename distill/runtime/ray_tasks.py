"""Tasks of a Ray cluster: a function is called on many objects, which stay in the cluster's memory or on its disks.

Such a function returns a pair: an object that stays there, for other tasks, and a small summary for the driver. It
depends on nothing but its arguments, so that Ray can repeat what a node that died had made.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from distill.runtime import ray_cluster
from distill.runtime.disk import full_disk_reason
from distill.runtime.errors import UserError

TASKS_OF_A_CORE = 2  # that are under way at once, so that no core waits for the driver
RETRIES = 20  # of a task whose worker or node dies


def call_on_cluster(
    function: Callable[..., tuple[Any, Any]], calls: Iterable[tuple[Any, ...]], timeout: float
) -> Iterator[tuple[Any, Any]]:
    """Call a function many times on the cluster; some calls are under way at once.

    Args:
        function: returns an object that stays on the cluster, and a summary.
        calls: the arguments of each call; objects of the cluster are given by reference.
        timeout: seconds that the driver waits for one summary.

    Yields:
        The reference of the object and the summary of each call, in the order of `calls`.

    Raises:
        UserError: the first that `function` raises, in the order of `calls`; or nothing has come in time.
    """
    import ray

    task = ray.remote(num_returns=2, max_retries=RETRIES)(_call)
    shared, versions = ray.put(function), tuple(ray_cluster.versions().items())
    under_way: deque[list[Any]] = deque()
    most = TASKS_OF_A_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
    for arguments in calls:
        under_way.append(task.remote(shared, versions, *arguments))
        if len(under_way) == most:
            yield _finished(under_way.popleft(), timeout)
    while under_way:
        yield _finished(under_way.popleft(), timeout)


def fetch(reference: Any, timeout: float) -> Any:
    """Get an object of the cluster.

    Raises:
        UserError: it has not come in time.
    """
    import ray

    try:
        return ray.get(reference, timeout=timeout)
    except ray.exceptions.GetTimeoutError:
        nodes = "; ".join(f"{node.get('CPU', 0):g} CPUs" for node in ray_cluster.resources_of_nodes())
        raise UserError(
            f"No task has been finished within {timeout:g} s. A task needs 1 CPU; the nodes have {nodes or 'nothing'}. "
            "If that suffices, workers die, or the cluster is busy with other work: see Ray's logs, or raise "
            "--ray_timeout."
        ) from None


@contextlib.contextmanager
def cluster_errors() -> Iterator[None]:
    """Turn what a cluster lacks into one message: a disk, memory, a node that does not come back.

    Raises:
        UserError: as above.
    """
    import ray.exceptions
    from ray.data.exceptions import ExecutionTimeoutError

    try:
        yield
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        cause = getattr(error, "cause", None)
        is_full = full_disk_reason(cause) is not None if cause is not None else False
        if cause is not None and not is_full and not isinstance(cause, ray.exceptions.RayError):
            raise  # an error of the function itself, which nobody expected
        reason = "a disk of a node is full" if is_full else ray_cluster.describe(error)[:300]
        raise UserError(
            f"The Ray cluster cannot go on: {reason}. Give it memory, disks or nodes, and start again."
        ) from None


def _finished(returned: list[Any], timeout: float) -> tuple[Any, Any]:
    reference, summary = returned
    value = fetch(summary, timeout)
    if isinstance(value, UserError):
        raise value
    return reference, value


def _call(function: Callable[..., tuple[Any, Any]], versions: tuple[tuple[str, str], ...], *arguments: Any) -> Any:
    """Call a function on a worker; a UserError, which Ray would wrap, is returned as the summary."""
    try:
        _check_versions(versions)
        return function(*arguments)
    except UserError as error:
        return None, error


@functools.cache
def _check_versions(versions: tuple[tuple[str, str], ...]) -> None:
    """Refuse to work where versions differ from the driver's, once a process.

    Raises:
        UserError: as above.
    """
    try:
        ray_cluster.check_versions(dict(versions))
    except UserError as error:
        raise UserError(f"Node {socket.gethostname()} cannot work: {error}") from None
