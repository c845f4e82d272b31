"""Measure data preparation: the real command on generated files, both engines, against the same work in pandas.

A parquet table (users and items by power laws, as in shops) with `duplicates first` and a 5-core, and gzipped JSON
lines like Amazon's reviews. Both engines and pandas run as separate processes, so that their peak memory can be
compared; the engines must write the same files.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benches import interleaved
from distill.data.sources import Options, amazon
from distill.runtime.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[1]
CORE = 5
WORDS = "the of and strings sound good for a guitar case stand works well with my new old it is very not".split()  # noqa: SIM905


@dataclass(frozen=True)
class Config:
    """Measure data preparation: python scripts/bench.py data [--field value ...]."""

    json: Path | None = None
    """Write the figures there."""
    seed: int = 0
    """Seed of the generated files."""
    interactions: int = 10_000_000
    """Rows of the table; it has a tenth as many users and a fiftieth as many items."""
    memory_limit: str = "2GB"
    """Memory of the engine duckdb."""
    reviews: int = 500_000
    """Lines of the file of reviews, about 600 bytes each."""
    folder: Path | None = None
    """Folder of the temporary files (default: the system's temporary folder)."""


def main(config: Config) -> dict:
    """Return seconds and GiB of both, and megabytes of JSON text per second."""
    with tempfile.TemporaryDirectory(dir=config.folder) as temporary:
        folder = Path(temporary).resolve()
        write_table(folder / "interactions.parquet", config.interactions, config.seed)
        size = f"{config.interactions:.0e}".replace("e+0", "e")
        core = ("--k_core", str(CORE), "--duplicates", "first", "--short_users", "drop", "--run", str(folder / "run"))
        ours = measure("prepare_data.py", "--format", "table", "--input", str(folder), *core)
        remaining = count_kept(folder / "run/dataset/sequences.parquet")
        limits = ("--engine", "duckdb", "--memory_limit", config.memory_limit, "--run", str(folder / "duckdb"))
        duckdb = measure("prepare_data.py", "--format", "table", "--input", str(folder), *core[:-2], *limits)
        if read_fingerprint(folder / "duckdb/dataset") != read_fingerprint(folder / "run/dataset"):
            raise UserError("Both engines of prepare_data write different files, so their times cannot be compared.")
        pandas = measure("-m", "benches.data", str(folder))
        if count_kept(folder / "pandas.parquet") != remaining:
            raise UserError("pandas and prepare_data keep different interactions, so their times cannot be compared.")
        text_mb = write_reviews(folder / "N.jsonl.gz", config.reviews, config.seed)
        reviews = folder / "N.jsonl.gz"
        contenders = {"ours": lambda: amazon.read(reviews, Options()), "json.loads": lambda: loads_reviews(reviews)}
        seconds_of = interleaved(contenders, repeats=3)
    return {
        f"prepare_s_{size}": ours.seconds,
        f"prepare_cpu_s_{size}": ours.cpu_seconds,
        f"prepare_gib_{size}": ours.gib,
        f"pandas_s_{size}": pandas.seconds,
        f"pandas_cpu_s_{size}": pandas.cpu_seconds,
        f"pandas_gib_{size}": pandas.gib,
        f"duckdb_s_{size}": duckdb.seconds,
        f"duckdb_cpu_s_{size}": duckdb.cpu_seconds,
        f"duckdb_gib_{size}": duckdb.gib,
        "duckdb_times_slower_than_memory": duckdb.seconds / ours.seconds,
        "duckdb_times_cpu_of_memory": duckdb.cpu_seconds / ours.cpu_seconds,
        "duckdb_gib_of_memory": duckdb.gib / ours.gib,
        "prepare_times_faster_than_pandas": pandas.seconds / ours.seconds,
        "read_jsonl_gz_mb_per_s": text_mb / seconds_of["ours"],
        "read_times_faster_than_json_loads": seconds_of["json.loads"] / seconds_of["ours"],
        "kept_users": remaining[0],
        "kept_interactions": remaining[1],
    }


def read_fingerprint(folder: Path) -> str:
    """Read the hash of an artifact's files."""
    return json.loads((folder / "manifest.json").read_text())["fingerprint"]


def count_kept(path: Path) -> tuple[int, int]:
    """Count users and interactions of a file of sequences."""
    lengths = pc.list_value_length(pq.read_table(path, columns=["items"])["items"])
    return len(lengths), pc.sum(lengths).as_py()


@dataclass(frozen=True)
class Measured:
    """Wall-clock seconds, CPU seconds of all cores, and peak memory in GiB."""

    seconds: float
    cpu_seconds: float
    gib: float


def measure(*command: str) -> Measured:
    """Measure a Python command in a new process, its start included; it runs in `scripts/`."""
    started, line = time.perf_counter(), [sys.executable, *command]
    process = subprocess.Popen(line, cwd=SCRIPTS, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    messages = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{' '.join(command)} ended with code {process.returncode}: {messages[-1000:]}")
    seconds = time.perf_counter() - started
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20)


def draw(rng: np.random.Generator, count: int, exponent: float, n: int) -> np.ndarray:
    """Draw n numbers below `count`, number k with probability proportional to 1 / (k + 20)^exponent."""
    weights = np.cumsum((np.arange(count) + 20.0) ** -exponent)
    return np.searchsorted(weights, rng.random(n) * weights[-1])


def write_table(path: Path, n: int, seed: int) -> None:
    """Write user_id, item_id (strings of 14 and 10 letters) and timestamp, in random order."""
    rng = np.random.default_rng(seed)
    columns = {"timestamp": pa.array(rng.integers(1_200_000_000, 1_600_000_000, n))}
    for name, count, exponent, letter in (("user_id", n // 10, 0.7, "A{:013d}"), ("item_id", n // 50, 1.0, "B{:09d}")):
        ids = pa.array([letter.format(number) for number in rng.permutation(count)])
        columns[name] = ids.take(pa.array(draw(rng, count, exponent, n)))
    pq.write_table(pa.table(columns), path)


def write_reviews(path: Path, n: int, seed: int) -> float:
    """Write reviews in the format of 2023; returns megabytes of text."""
    rng = np.random.default_rng(seed)
    users, items = draw(rng, n // 4, 0.7, n), draw(rng, max(n // 50, 1), 1.0, n)
    times, words = rng.integers(1.2e12, 1.6e12, n), rng.integers(0, len(WORDS), (n, 60))
    size = 0
    with gzip.open(path, "wb", compresslevel=6) as file:
        for row in range(n):
            line = {
                "rating": float(1 + row % 5),
                "title": "Five stars",
                "text": " ".join(WORDS[word] for word in words[row]),
                "images": [],
                "asin": f"B{items[row]:09d}",
                "parent_asin": f"B{items[row]:09d}",
                "user_id": f"A{users[row]:027d}",
                "timestamp": int(times[row]),
                "helpful_vote": 0,
                "verified_purchase": True,
            }
            text = (json.dumps(line) + "\n").encode()
            size += file.write(text)
    return size / 1e6


def pandas_prepare(folder: Path) -> None:
    """Do the same work in pandas: first of repeated interactions, k-core, sequences in time order, written."""
    import pandas as pd

    rows = pd.read_parquet(folder / "interactions.parquet", columns=["user_id", "item_id", "timestamp"])
    rows["user"], users = pd.factorize(rows.pop("user_id"))  # numbers are faster than strings
    rows["item"], _ = pd.factorize(rows.pop("item_id"))
    rows = rows.sort_values(["user", "timestamp"], kind="stable").drop_duplicates(["user", "item"])
    while True:
        enough = rows["user"].map(rows["user"].value_counts()).ge(CORE)
        enough &= rows["item"].map(rows["item"].value_counts()).ge(CORE)
        if enough.all():
            break
        rows = rows[enough]
    lists = rows.groupby("user", sort=False).agg(items=("item", list), timestamps=("timestamp", list))
    lists.insert(0, "user_id", users[lists.index])
    lists.to_parquet(folder / "pandas.parquet")


def loads_reviews(path: Path) -> None:
    """Read reviews line by line: the same columns, ids not numbered."""
    columns: dict[str, list] = {name: [] for name in ("user_id", "parent_asin", "timestamp", "rating")}
    with gzip.open(path) as file:
        for line in file:
            row = json.loads(line)
            for name, column in columns.items():
                column.append(row[name])


if __name__ == "__main__":  # pandas, in a separate process
    pandas_prepare(Path(sys.argv[1]))
