"""Connecting to a Ray cluster: in bounded time, silent, and with one message for whatever is wrong."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from distill.runtime.checksums import code_fingerprint
from distill.runtime.errors import UserError

CONNECT_SECONDS = 10  # for a port to answer
JOIN_SECONDS = 45  # then for Ray, which by itself tries for ever; it looks for signals every half minute
PACKAGES = ("ray", "torch", "transformers", "numpy", "pyarrow")  # their versions may change bytes of results


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[None]:
    """Connect to a cluster inside the block, or start one on this machine.

    Args:
        address: HOST:PORT of the head, or "auto" on a machine of the cluster. None: that of RAY_ADDRESS, else a cluster
            of this machine alone, which ends with the block.

    Raises:
        UserError: Ray is not installed; the cluster does not answer, or has another version of Ray or Python.
    """
    ray = import_ray()
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    check_address(address)
    if address not in ("local", "auto"):
        check_health(address)
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        with deadline(JOIN_SECONDS):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (RuntimeError, ValueError, ConnectionError, OSError) as error:
        raise UserError(f"Cannot join the Ray cluster at {address}: {describe(error)}") from None
    silence(ray)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the block after some seconds; only the main thread of a process has such a deadline."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"no answer within {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def import_ray() -> Any:
    """Import Ray with Ray Data.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent home
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what Ray retries by itself
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # errors of results that nobody needed any more
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(
            f"Ray Data cannot be imported ({error}). Install it here and on every node: "
            "pip install -c constraints.txt -e '.[ray]'"
        ) from None
    return ray


def check_address(address: str) -> None:
    """Refuse an address of another form, or where nothing listens.

    Raises:
        UserError: as above.
    """
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise UserError(
            f"The Ray address is {address}; expected HOST:PORT, auto or local. Ray Data does not run over ray://: "
            "start the command on a machine of the cluster, or by `ray job submit`."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"No Ray cluster answers at {address} ({error}). Start its head with `ray start --head --port {port}`, or "
            "correct --ray_address."
        ) from None


def check_health(address: str) -> None:
    """Refuse an address where something listens that is no head of a Ray cluster of this version.

    Another process asks, because it can be ended: Ray would wait for ever for a head that accepts and is silent.

    Raises:
        UserError: as above.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        healthy = subprocess.run(command, capture_output=True, timeout=JOIN_SECONDS, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy:
        raise UserError(
            f"What listens at {address} is no head of a Ray cluster, or it does not answer. Correct --ray_address, or "
            "see `ray status` there."
        )


def silence(ray: Any) -> None:
    """Keep the plans, progress and retried errors of Ray Data off the terminal; its log files have them all."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=ray.util.annotations.RayDeprecationWarning)


def resources_of_nodes() -> list[dict[str, float]]:
    """List the resources, CPU and GPU among them, of the nodes that are alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def versions() -> dict[str, str]:
    """Collect what must be the same on all nodes: Python's minor version, packages, and this project's own code."""
    python = ".".join(map(str, sys.version_info[:2]))
    # builds of one version for other hardware differ behind the plus
    packages = {name: importlib.metadata.version(name).partition("+")[0] for name in PACKAGES}
    return {"python": python, **packages, "code of lohrec-distill": code_fingerprint()}


def check_versions(expected: dict[str, str]) -> None:
    """Refuse to work where versions differ from the driver's.

    Args:
        expected: the driver's `versions`.

    Raises:
        UserError: names what differs.
    """
    actual = versions()
    differences = [
        f"{name} {actual[name]}, not {version}" for name, version in expected.items() if actual[name] != version
    ]
    if differences:
        raise UserError(
            f"it has {', '.join(differences)}. Results would depend on who makes them: install the same everywhere."
        )


def describe(error: BaseException) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
