"""Measure semantic IDs of a catalogue larger than memory: train on a sample, encode, resolve.

    python scripts/bench.py ids --json ids.json

The embeddings are synthetic (nested clusters with a falling spectrum, one in a hundred a duplicate) and lie in a mapped
file. `encode_vs_numpy` is the speed-up over the plain residual loop in numpy, on a part of the same rows.
"""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benches import interleaved
from distill.runtime.errors import UserError
from distill.runtime.logs import progress_bar
from distill.semantic_ids import quantisers
from distill.semantic_ids.collisions import move_surplus, resolve_collisions
from distill.semantic_ids.ids import collision_rate

CHUNK = 1 << 14


@dataclass(frozen=True)
class Config:
    """Measure how long a large catalogue takes to quantise."""

    json: Path | None = None
    """Write the figures here."""
    items: int = 1_000_000
    """Items of the catalogue."""
    dim: int = 768
    """Size of an embedding."""
    quantiser: Literal["rqvae", "rkmeans", "pq"] = "rkmeans"
    """Quantiser to measure."""
    sample: int = 65_536
    """Items to train it on."""
    epochs: int = 20
    """rqvae: passes over the sample."""
    compared: int = 16_384
    """Rows that the numpy loop encodes too."""
    folder: Path | None = None
    """Folder of the temporary embeddings file (default: the system's temporary folder)."""
    seed: int = 0
    """Of the embeddings and the training."""


def main(config: Config) -> dict[str, Any]:
    """Write embeddings, train, encode, resolve; returns seconds, GiB and rates."""
    if config.folder is not None and not config.folder.is_dir():
        raise UserError(f"No folder {config.folder} for the embeddings; make it first.")
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        path = Path(folder) / "embeddings.npy"
        write_embeddings(path, config)
        x = np.load(path, mmap_mode="r")
        settings = quantisers.RQVAEConfig(epochs=config.epochs, warmup_epochs=config.epochs // 4)
        started = time.perf_counter()
        model = quantisers.fit(
            config.quantiser, x, 4, 256, config.seed, settings, sample=min(config.sample, config.items)
        )
        trained = time.perf_counter()
        before = model.encode(x)
        encoded = time.perf_counter()
        codes = move_surplus(before, lambda rows, chosen, level: model.target(x[rows], chosen, level), model.words)
        codes = resolve_collisions(codes, lambda rows: model.target(x[rows], codes[rows], 3), model.words(3))
        resolved = time.perf_counter()
        figures = {
            "items": config.items,
            "dim": config.dim,
            "quantiser": config.quantiser,
            "train_s": trained - started,
            "encode_s_1e6": (encoded - trained) / config.items * 1e6,
            "resolve_s_1e6": (resolved - encoded) / config.items * 1e6,
            "collision_rate_before": collision_rate(before),
            "collision_rate": collision_rate(codes),
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,  # with the file's mapped pages
            "file_gib": path.stat().st_size / 2**30,
        }
        if config.quantiser != "rqvae":
            part = np.array(x[: config.compared])
            seconds = interleaved(
                {"ours": lambda: model.encode(part), "numpy": lambda: by_residuals(part, model)}, repeats=3
            )
            figures["encode_vs_numpy"] = seconds["numpy"] / seconds["ours"]
        return figures


def write_embeddings(path: Path, config: Config) -> None:
    """Write nested clusters, chunk by chunk."""
    rng = np.random.default_rng(config.seed)
    spectrum = (1 + np.arange(config.dim, dtype=np.float32)) ** -0.5  # as in embeddings of texts: few strong directions
    centers = [scale * rng.standard_normal((count, config.dim), np.float32) for count, scale in ((300, 1), (5000, 0.5))]
    x = np.lib.format.open_memmap(path, "w+", np.float32, (config.items, config.dim))
    for start in progress_bar(range(0, config.items, CHUNK), desc="writing embeddings", unit="chunk"):
        count = min(CHUNK, config.items - start)
        rows = 0.3 * rng.standard_normal((count, config.dim), np.float32)
        for center in centers:
            rows += center[rng.integers(len(center), size=count)]
        duplicates = rng.integers(count, size=(2, count // 100))
        rows[duplicates[0]] = rows[duplicates[1]]
        x[start : start + count] = rows * spectrum
    x.flush()


def by_residuals(x: np.ndarray, model: quantisers.Quantiser) -> np.ndarray:
    """Encode by the plain loop: find the nearest codeword, subtract it, go to the next level."""
    residual, codes = model.target(x, np.zeros((len(x), 0), np.int64), 0), []
    for level in range(model.levels):
        words = model.words(level)
        distances = np.square(residual).sum(1)[:, None] - 2 * residual @ words.T + np.square(words).sum(1)
        codes.append(distances.argmin(1))
        residual = residual - words[codes[-1]]
    return np.stack(codes, axis=1)
