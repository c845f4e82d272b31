"""Measure data preparation on a Ray cluster of this machine alone: --engine ray against --engine duckdb.

Both are the real command on the same generated tables, in turn, with `duplicates first` and a 5-core; they must write
the same files. Memory is what processes have for themselves: objects, which Ray's processes share, are counted apart.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benches.data import CORE, SCRIPTS, read_fingerprint, write_table
from distill.runtime.errors import UserError

INTERVAL = 0.1  # seconds between two looks at the memory


@dataclass(frozen=True)
class Config:
    """Measure data preparation on Ray: python scripts/bench.py ray_data [--field value ...]."""

    json: Path | None = None
    """Write the figures there."""
    seed: int = 0
    """Seed of the generated tables."""
    sizes: list[int] = field(default_factory=lambda: [1_000_000, 10_000_000])
    """Rows of each table, parquet; it has a tenth as many users and a fiftieth as many items."""
    rounds: int = 1
    """Runs of each engine on a table; the median is printed, of memory the highest."""
    memory_limit: str = "2GB"
    """Memory of the engine duckdb."""
    folder: Path | None = None
    """Folder of the temporary files (default: the system's temporary folder)."""


def main(config: Config) -> dict:
    """Return, for each size and engine, seconds, and GiB of the driver, the largest worker and the shared objects."""
    figures: dict[str, float] = {}
    for size in config.sizes:
        with tempfile.TemporaryDirectory(dir=config.folder) as temporary:
            folder = Path(temporary).resolve()
            write_table(folder / "interactions.parquet", size, config.seed)
            runs: dict[str, list[Measured]] = {"duckdb": [], "ray": []}
            for _ in range(config.rounds):
                for engine, measured in runs.items():
                    shutil.rmtree(folder / engine, ignore_errors=True)
                    words = ("--engine", engine, "--memory_limit", config.memory_limit, "--run", str(folder / engine))
                    measured.append(measure(folder, *words))
                if len({read_fingerprint(folder / engine / "dataset") for engine in runs}) > 1:
                    raise UserError("Both engines write different files, so their times cannot be compared.")
        name = f"{size:.0e}".replace("e+0", "e")
        for engine, measured in runs.items():
            figures[f"{engine}_s_{name}"] = statistics.median(run.seconds for run in measured)
            figures[f"{engine}_driver_gib_{name}"] = max(run.driver_gib for run in measured)
        figures[f"ray_worker_gib_{name}"] = max(run.worker_gib for run in runs["ray"])
        figures[f"ray_objects_gib_{name}"] = max(run.objects_gib for run in runs["ray"])
    return figures


@dataclass(frozen=True)
class Measured:
    """Seconds of a command, and peak GiB of its process, of the largest process below it, and of shared memory."""

    seconds: float
    driver_gib: float
    worker_gib: float
    objects_gib: float


def measure(folder: Path, *words: str) -> Measured:
    """Prepare the table of a folder in a new process, its start included, and look at its memory all the while."""
    command = [sys.executable, "prepare_data.py", "--format", "table", "--input", str(folder), "--k_core", str(CORE)]
    started, peaks = time.perf_counter(), (0.0, 0.0, 0.0)
    with tempfile.TemporaryFile("w+") as messages:
        process = subprocess.Popen(
            [*command, "--duplicates", "first", "--short_users", "drop", *words],
            cwd=SCRIPTS, stdout=subprocess.DEVNULL, stderr=messages,
        )  # fmt: skip
        while process.poll() is None:
            peaks = tuple(map(max, peaks, memory_below(process.pid)))
            time.sleep(INTERVAL)
        if process.returncode:
            messages.seek(0)
            raise UserError(f"{' '.join(words)} ended with code {process.returncode}: {messages.read()[-1000:]}")
    return Measured(time.perf_counter() - started, *peaks)


def memory_below(pid: int) -> tuple[float, float, float]:
    """Read GiB that a process has for itself, the most that one below it has, and the most that one shares."""
    driver = worker = shared = 0.0
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        with contextlib.suppress(OSError):  # it has ended
            status = Path(f"/proc/{current}/status").read_text()
            unshared, objects = (
                sum(int(kib) for kib in re.findall(rf"^{name}:\s+(\d+)", status, re.MULTILINE)) / 2**20
                for name in ("RssAnon", "RssShmem")
            )
            driver, worker = (unshared, worker) if current == pid else (driver, max(worker, unshared))
            shared = max(shared, objects)
            for thread in Path(f"/proc/{current}/task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
    return driver, worker, shared
