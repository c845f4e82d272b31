"""The server under closed-loop load: each client asks again as soon as it has its list; batches against one by one.

python scripts/bench.py serve --student runs/demo/students/dwr+memory --seconds 60 --swaps 5

Clients are threads of other processes than the server. The server runs twice: with batches, and with `--max_batch 1`;
with `--swaps` a third time, while events arrive and the student is loaded again.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from distill.runtime.errors import UserError
from student.config import GraphFormat

ROOT = Path(__file__).parents[2]
CLIENTS_PER_PROCESS = 32


@dataclass(frozen=True)
class Config:
    """Measure the server: python scripts/bench.py serve [--field value ...]."""

    student: Path = Path("runs/demo/students/dwr+memory")
    """Folder of the student."""
    clients: list[PositiveInt] = field(default_factory=lambda: [1, 8, 64])
    """Numbers of clients, with commas between."""
    seconds: PositiveFloat = 10.0
    """Length of each measurement, after a second of warm-up."""
    k: PositiveInt = 10
    """Items per list."""
    seed: NonNegativeInt = 0
    """Of the histories."""
    graphs: Literal["none", GraphFormat] = "none"
    """As of `scripts/serve.py`."""
    swaps: NonNegativeInt = 0
    """Times that the student is loaded again, while events arrive, under the most clients; 0: not measured."""
    json: Path | None = None
    """File for the figures."""


def main(config: Config) -> dict[str, Any]:
    """Measure both servers for each number of clients."""
    figures: dict[str, Any] = {}
    for label, options in (("batches", []), ("one by one", ["--max_batch", "1"])):
        with Served(config.student, [*options, "--graphs", config.graphs]) as server:
            names = server.item_ids()
            figures[f"{label}: MiB at start"] = server.mebibytes()
            for clients in config.clients:
                figures |= {
                    f"{label}, {clients} clients: {name}": value
                    for name, value in load(server.port, names, clients, config).items()
                }
            figures[f"{label}: MiB at end"] = server.mebibytes()
    for clients in config.clients:
        speeds = [figures[f"{label}, {clients} clients: lists/s"] for label in ("batches", "one by one")]
        figures[f"{clients} clients: batches / one by one"] = speeds[0] / max(speeds[1], 1e-9)
    return figures | (load_with_changes(config) if config.swaps else {})


def load_with_changes(config: Config) -> dict[str, float]:
    """Measure the server under the most clients while events arrive and the student is swapped."""
    clients = max(config.clients)
    with (
        tempfile.TemporaryDirectory() as folder,
        Served(config.student, ["--events", f"{folder}/events.sqlite", "--graphs", config.graphs]) as server,
        ThreadPoolExecutor(2) as threads,
    ):
        names = server.item_ids()
        sent = threads.submit(send_events, server.port, names, config)
        swapped = threads.submit(swap, server.port, config)
        figures = load(server.port, names, clients, config)
        (acknowledged, lost_events), failed_swaps = sent.result(), swapped.result()
        counted, end = server.last_event(), time.monotonic() + 60
        while counted < acknowledged and time.monotonic() < end:
            time.sleep(0.1)
            counted = server.last_event()
    figures |= {"events acknowledged": acknowledged, "events not acknowledged": lost_events, "events counted": counted}
    figures |= {"failed swaps": failed_swaps}
    return {f"events and {config.swaps} swaps, {clients} clients: {name}": value for name, value in figures.items()}


def send_events(port: int, names: list[str], config: Config) -> tuple[int, int]:
    """Send one event after the other while the load lasts; returns how many were acknowledged, and how many not."""
    rng, end, sent, acknowledged = random.Random(config.seed), time.monotonic() + 1 + config.seconds, 0, 0
    while time.monotonic() < end:
        event = {"user_id": f"u{rng.randrange(100)}", "item_id": rng.choice(names), "event_id": str(sent)}
        acknowledged += post(port, "/v1/events", {"events": [event]}) == 200
        sent += 1
        time.sleep(0.02)
    return acknowledged, sent - acknowledged


def swap(port: int, config: Config) -> int:
    """Have the student loaded again at even intervals; returns how often that failed."""
    failed = 0
    for _ in range(config.swaps):
        time.sleep(config.seconds / (config.swaps + 1))
        failed += post(port, "/v1/admin/reload", {}) != 200
    return failed


def post(port: int, path: str, body: Any) -> int:
    """Send a request on a connection of its own; returns the status, 0 where there was no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


class Served:
    """The real server on a free port, as a context.

    Args:
        student: its folder.
        options: further flags.
    """

    def __init__(self, student: Path, options: list[str]):
        command = [sys.executable, str(ROOT / "scripts/serve.py"), "--student", str(student), "--port", "0", *options]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        line = self.process.stdout.readline().strip()
        if " on http://" not in line:
            raise UserError(f"The server did not start with {student}; its message is above.")
        self.port = int(line.rsplit(":", 1)[1])

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def mebibytes(self) -> float:
        """Resident memory."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def item_ids(self) -> list[str]:
        """Ask for some item ids."""
        return [item["item_id"] for item in json.loads(self._get("/v1/items"))["items"]]

    def last_event(self) -> int:
        """Ask for the last event that the memory has counted."""
        lines = self._get("/metrics").decode().splitlines()
        return int(float(next(line.split()[1] for line in lines if line.startswith("memory_last_event "))))

    def _get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        return connection.getresponse().read()


def load(port: int, names: list[str], clients: int, config: Config) -> dict[str, float]:
    """Ask from a number of clients at once.

    Returns:
        Lists per second, milliseconds of the median and of the slowest hundredth, and failures.
    """
    shares = [len(part) for part in np.array_split(range(clients), -(-clients // CLIENTS_PER_PROCESS))]
    ask = partial(ask_from_threads, port, names, config.k, config.seconds)
    with ProcessPoolExecutor(len(shares)) as processes:
        results = list(processes.map(ask, shares, range(config.seed * 1000, config.seed * 1000 + len(shares))))
    seconds = np.concatenate([part for part, _ in results])
    if not len(seconds):
        raise UserError("No request was answered: the server is too slow for --seconds.")
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
    failures = sum(count for _, count in results)
    return {"lists/s": len(seconds) / config.seconds, "p50 ms": p50, "p99 ms": p99, "failures": failures}


def ask_from_threads(
    port: int, names: list[str], k: int, seconds: float, clients: int, seed: int
) -> tuple[np.ndarray, int]:
    """Ask from threads of this process; returns the seconds of each answer, and the failures."""
    start = time.monotonic() + 1  # warm-up
    with ThreadPoolExecutor(clients) as threads:
        ask = partial(ask_in_turn, port, names, k, start, start + seconds)
        results = list(threads.map(ask, [seed * 10_000 + client for client in range(clients)]))
    return np.concatenate([part for part, _ in results]), sum(count for _, count in results)


def ask_in_turn(port: int, names: list[str], k: int, start: float, end: float, seed: int) -> tuple[np.ndarray, int]:
    """Ask one request after the other until the end; answers count from the start on."""
    rng, times, failures = random.Random(seed), [], 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while (sent := time.monotonic()) < end:
        history = rng.choices(names, k=rng.randint(1, 10))
        try:
            body = json.dumps({"histories": [history], "k": k})
            connection.request("POST", "/v1/recommend", body, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            failed = response.status != 200
        except (OSError, http.client.HTTPException):
            connection.close()
            failed = True
        answered = time.monotonic()
        if start <= answered <= end:
            failures += failed
            if not failed:
                times.append(answered - sent)
    return np.array(times), failures
