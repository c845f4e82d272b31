"""Soft labels on disk: bytes and KL of each encoding, and how fast shards are written and read."""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt

from benches import interleaved
from distill.data.dataset import Examples
from distill.labels.encodings import ENCODINGS, kl
from distill.labels.schema import write_index
from distill.labels.store import LabelStore
from distill.labels.writer import encode_columns, shard_columns, write_shard
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from distill.runtime.logs import log

LEVELS, SIZE, KEEP, ITEMS = 4, 256, 16, 10_000
ENTROPY = (4.3, 4.1, 2.1, 1.6)  # nats of each level: a small teacher on Instruments, the least certain one measured


@dataclass(frozen=True)
class Config:
    """Bytes and KL of label encodings: python scripts/bench.py labels [--labels FOLDER] [--json FILE]."""

    labels: Path | None = None
    """A soft_labels artifact of encoding fp16 whose first shard is encoded again; none: random distributions."""
    rows: PositiveInt = 4096
    """Examples of a shard."""
    stream: NonNegativeInt = 0
    """Examples of a set that is written and then streamed once while its memory is measured; 0: none."""
    repeats: PositiveInt = 3
    """Measured rounds; medians are reported."""
    json: Path | None = None
    """File for the figures."""
    seed: int = 0
    """Seed of the random distributions."""


def main(config: Config) -> dict[str, Any]:
    """Measure the encodings, and on request the streaming of a set."""
    figures = measure_encodings(config.seed, config.rows, config.repeats, config.labels)
    return figures | (measure_streaming(config.stream, config.rows, config.seed) if config.stream else {})


def measure_encodings(
    seed: int = 0, rows: int = 4096, repeats: int = 3, labels: Path | None = None
) -> dict[str, float]:
    """Measure bytes a target (all columns; log-probabilities), mean KL, and targets written and read a second."""
    shard = stored_shard(labels, rows) if labels else random_shard(rows, np.random.default_rng(seed))
    log_probs, figures = shard[-1], {}
    other_columns = len(encode_columns(shard_columns(*shard[:-1], log_probs[:, :0], "fp16")))
    for encoding in ENCODINGS:
        size = len(encode_columns(shard_columns(*shard, encoding)))
        name = encoding.replace("+", "_")
        figures[f"bytes_per_target_{name}"] = size / len(log_probs)
        figures[f"bytes_per_target_{name}_log_probs"] = (size - other_columns) / len(log_probs)
        figures[f"kl_{name}"] = kl(log_probs, encoding)
    write = {
        encoding: lambda encoding=encoding: encode_columns(shard_columns(*shard, encoding)) for encoding in ENCODINGS
    }
    with tempfile.TemporaryDirectory() as folder:
        stores = {encoding: write_set(Path(folder) / encoding, shard, encoding) for encoding in ENCODINGS}
        read = {encoding: lambda store=store: store.load().log_probs() for encoding, store in stores.items()}
        for what, work in (("write", write), ("read", read)):
            for encoding, seconds in interleaved(work, repeats).items():
                figures[f"{what}_targets_per_s_{encoding.replace('+', '_')}"] = len(log_probs) / seconds
    return figures


def random_shard(rows: int, rng: np.random.Generator) -> tuple[Any, ...]:
    """Draw distributions with about the entropies of a real teacher, as arguments of `shard_columns`."""
    log_probs = np.empty((rows, LEVELS, SIZE), np.float32)
    popularity = rng.normal(0, 1, (LEVELS, SIZE))
    for level, entropy in enumerate(ENTROPY):
        logits = popularity[level] + rng.normal(0, 1, (rows, SIZE))
        low, high = 0.05, 20.0
        for _ in range(30):  # search the scale that gives the entropy
            scale = (low * high) ** 0.5
            values = log_softmax(scale * logits)
            low, high = (scale, high) if -(np.exp(values) * values).sum(1).mean() > entropy else (low, scale)
        log_probs[:, level] = values + np.log(0.97)
    users = np.sort(rng.integers(0, max(rows // 5, 1), rows))
    positions = np.arange(rows) - np.searchsorted(users, users) + 1
    candidates = (ITEMS * rng.random((rows, KEEP)) ** 3).astype(np.int64)  # some items are in many lists
    examples = Examples(users, positions, np.zeros((rows, 0), int), candidates[:, 0])
    scores = -np.sort(rng.exponential(3, (rows, KEEP)), axis=1)
    return examples, rng.integers(0, SIZE, (rows, LEVELS)), candidates, scores, log_probs


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-softmax over the last axis."""
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def stored_shard(folder: Path, rows: int) -> tuple[Any, ...]:
    """Read the first rows of a finished set, as arguments of `shard_columns`."""
    store = LabelStore.open(folder)
    if store.index["encoding"] != "fp16":
        raise UserError(f"{folder} is encoded as {store.index['encoding']}; export with --encoding fp16 to compare.")
    block = next(store.blocks(rows))
    first = slice(0, rows)
    examples = Examples(block.users[first], block.positions[first], np.zeros((0, 0), int), block.targets[first])
    log_probs = block.log_probs(first).astype(np.float32)
    return examples, block.columns["target_codes"][first], block.candidates(first), block.scores(first), log_probs


def write_set(folder: Path, shard: tuple[Any, ...], encoding: str, copies: int = 1) -> LabelStore:
    """Write a finished set of one shard, or of copies of it."""
    facts = {"levels": LEVELS, "codebook_size": shard[-1].shape[2], "scope": "level", "keep": KEEP}
    with ArtifactJob("soft_labels", Config(), folder).write() as part:
        (part / "data").mkdir()
        records = [write_shard(part / "data" / "00000.parquet", *shard, encoding)]
        for number in range(1, copies):
            records.append(records[0] | {"file": f"{number:05d}.parquet"})
            shutil.copy(part / "data" / "00000.parquet", part / "data" / records[-1]["file"])
        write_index(part, records, encoding=encoding, **facts)
    return LabelStore.open(folder)


def measure_streaming(rows: int, shard_rows: int, seed: int) -> dict[str, float]:
    """Measure a shuffled pass over a set that decodes every label in batches: targets a second, and peak memory."""
    shard = random_shard(shard_rows, np.random.default_rng(seed))
    with tempfile.TemporaryDirectory() as folder:
        copies = -(-rows // shard_rows)
        log.info(f"{copies} shards of {shard_rows} targets")
        store = write_set(Path(folder) / "labels", shard, "u8", copies)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started, seen = time.perf_counter(), 0
        for block in store.blocks(65536, np.random.default_rng(seed)):
            order = np.random.default_rng(seed).permutation(len(block))
            for start in range(0, len(order), 256):
                seen += len(block.log_probs(order[start : start + 256]))
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "stream_targets": seen,
        "stream_targets_per_s": seen / seconds,
        "stream_peak_mib": peak / 1024,
        "stream_peak_mib_before": before / 1024,
    }
