"""The label store: what each encoding costs in bytes and nats, and how fast shards are written and read."""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benches import interleaved
from distill.data.dataset import Examples
from distill.labels.encodings import ENCODINGS, kl
from distill.labels.schema import write_index
from distill.labels.store import LabelStore
from distill.labels.writer import encode_shard, write_shard
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from distill.runtime.logs import log

LEVELS, SIZE, KEEP, ITEMS = 4, 256, 16, 10_000
ENTROPY = (4.3, 4.1, 2.1, 1.6)  # nats, level by level: of a small teacher on Instruments, the vaguest we have


@dataclass(frozen=True)
class Config:
    """Bytes and KL of label encodings: python scripts/bench.py labels [--labels FOLDER] [--json FILE]."""

    labels: Path | None = None
    """A soft_labels artifact whose first shard is encoded again, best one of fp16; none: made-up distributions."""
    rows: int = 4096
    """Examples a shard."""
    stream: int = 0
    """Examples of a set that is written and then streamed once, its memory measured; 0: none."""
    repeats: int = 3
    """Measured rounds; medians are reported."""
    json: Path | None = None
    """Where the figures go."""
    seed: int = 0
    """Of the made-up distributions."""


def main(config: Config) -> dict[str, Any]:
    """All figures."""
    figures = encodings(config.seed, config.rows, config.repeats, config.labels)
    return figures | (streaming(config.stream, config.rows, config.seed) if config.stream else {})


def encodings(seed: int = 0, rows: int = 4096, repeats: int = 3, labels: Path | None = None) -> dict[str, float]:
    """Bytes a target (whole rows and the log-probabilities alone), mean KL to fp32, targets a second in and out."""
    shard = stored(labels, rows) if labels else made_up(rows, np.random.default_rng(seed))
    log_probs, figures, content = shard[-1], {}, {}
    nothing = len(encode_shard(*shard[:-1], log_probs[:, :0], "fp16"))
    for encoding in ENCODINGS:
        content[encoding] = encode_shard(*shard, encoding)
        name = encoding.replace("+", "_")
        figures[f"bytes_per_target_{name}"] = len(content[encoding]) / len(log_probs)
        figures[f"bytes_per_target_{name}_log_probs"] = (len(content[encoding]) - nothing) / len(log_probs)
        figures[f"kl_{name}"] = kl(log_probs, encoding)
    write = {encoding: lambda encoding=encoding: encode_shard(*shard, encoding) for encoding in ENCODINGS}
    with tempfile.TemporaryDirectory() as folder:
        stores = {encoding: one_shard(Path(folder) / encoding, shard, encoding) for encoding in ENCODINGS}
        read = {encoding: lambda store=store: store.load().log_probs() for encoding, store in stores.items()}
        for what, work in (("write", write), ("read", read)):
            for encoding, seconds in interleaved(work, repeats).items():
                figures[f"{what}_targets_per_s_{encoding.replace('+', '_')}"] = len(log_probs) / seconds
    return figures


def made_up(rows: int, rng: np.random.Generator) -> tuple[Any, ...]:
    """A shard of random distributions with about the entropies of a real teacher: `encode_shard`'s arguments."""
    log_probs = np.empty((rows, LEVELS, SIZE), np.float32)
    popularity = rng.normal(0, 1, (LEVELS, SIZE))
    for level, entropy in enumerate(ENTROPY):
        logits = popularity[level] + rng.normal(0, 1, (rows, SIZE))
        low, high = 0.05, 20.0
        for _ in range(30):  # the sharpness that gives the entropy
            scale = (low * high) ** 0.5
            found = log_softmax(scale * logits)
            low, high = (scale, high) if -(np.exp(found) * found).sum(1).mean() > entropy else (low, scale)
        log_probs[:, level] = found + np.log(0.97)
    users = np.sort(rng.integers(0, max(rows // 5, 1), rows))
    positions = np.arange(rows) - np.searchsorted(users, users) + 1
    candidates = (ITEMS * rng.random((rows, KEEP)) ** 3).astype(np.int64)  # some items are in many lists
    examples = Examples(users, positions, np.zeros((rows, 0), int), candidates[:, 0])
    scores = -np.sort(rng.exponential(3, (rows, KEEP)), axis=1)
    return examples, rng.integers(0, SIZE, (rows, LEVELS)), candidates, scores, log_probs


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of the last axis."""
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def stored(folder: Path, rows: int) -> tuple[Any, ...]:
    """The first rows of a finished set: `encode_shard`'s arguments."""
    store = LabelStore.open(folder)
    if store.index["encoding"] != "fp16":
        raise UserError(f"{folder} is encoded as {store.index['encoding']}; export with --encoding fp16 to compare.")
    block = next(store.blocks(rows))
    first = slice(0, rows)
    examples = Examples(block.users[first], block.positions[first], np.zeros((0, 0), int), block.targets[first])
    log_probs = block.log_probs(first).astype(np.float32)
    return examples, block.columns["target_codes"][first], block.candidates(first), block.scores(first), log_probs


def one_shard(folder: Path, shard: tuple[Any, ...], encoding: str, copies: int = 1) -> LabelStore:
    """A finished set of one shard, or of many copies of it."""
    facts = {"levels": LEVELS, "codebook_size": shard[-1].shape[2], "scope": "level", "keep": KEEP}
    with ArtifactJob("soft_labels", Config(), folder).write() as part:
        (part / "data").mkdir()
        said = [write_shard(part / "data" / "00000.parquet", *shard, encoding)]
        for number in range(1, copies):
            said.append(said[0] | {"file": f"{number:05d}.parquet"})
            shutil.copy(part / "data" / "00000.parquet", part / "data" / said[-1]["file"])
        write_index(part, said, encoding=encoding, **facts)
    return LabelStore.open(folder)


def streaming(rows: int, shard_rows: int, seed: int) -> dict[str, float]:
    """One shuffled pass over a set of so many targets, every label decoded in batches: rate, and memory on top."""
    shard = made_up(shard_rows, np.random.default_rng(seed))
    with tempfile.TemporaryDirectory() as folder:
        copies = -(-rows // shard_rows)
        log.info(f"{copies} shards of {shard_rows} targets")
        store = one_shard(Path(folder) / "labels", shard, "u8", copies)
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
