"""Measure the lists of the baseline `content` in a large catalogue: all scores, some items at a time, and FAISS.

    OMP_NUM_THREADS=1 python scripts/bench.py content

Random vectors, anywhere or (`--centres 10000`) around centres, as texts of one kind of product lie together. FAISS is
measured where it is installed (`pip install faiss-cpu`); nothing of the toolkit needs it.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from distill.metrics import coverage
from distill.ranking import top_by_products, top_items


@dataclass(frozen=True)
class Config:
    """Measure lists by cosine: python scripts/bench.py content [--field value ...]."""

    items: PositiveInt = 1_000_000
    """Size of the catalogue."""
    dim: PositiveInt = 384
    """Width of the vectors."""
    users: PositiveInt = 64
    """Users whose lists are made at once."""
    centres: NonNegativeInt = 0
    """Random centres around which vectors lie; 0: they lie anywhere, which leaves an index nothing to find."""
    spread: PositiveFloat = 1.0
    """Length of what lies between a vector and its centre, of length 1."""
    k: PositiveInt = 20
    """Length of the lists."""
    clusters: NonNegativeInt = 1024
    """Inverted lists of FAISS's index, trained on 64 vectors a list; 0: no such index."""
    probes: list[PositiveInt] = field(default_factory=lambda: [8, 32, 128])
    """Inverted lists that are searched."""
    json: Path | None = None
    """File for the figures."""
    seed: NonNegativeInt = 0
    """Of the vectors."""


def main(config: Config) -> dict[str, Any]:
    """Return processor milliseconds a user, and the share of the exact lists' items that others have."""
    rng = np.random.default_rng(config.seed)
    centres = unit_vectors(rng, config.centres, config.dim) if config.centres else None
    vectors, queries = (
        unit_vectors(rng, count, config.dim, centres, config.spread) for count in (config.items, config.users)
    )
    figures: dict[str, Any] = {}

    def measure(name: str, rank: Callable[[], np.ndarray]) -> np.ndarray:
        started = time.process_time()
        lists = rank()
        figures[f"{name}_ms_a_user"] = (time.process_time() - started) / config.users * 1e3
        return lists

    exact = measure("all_scores", lambda: top_items((queries @ vectors.T).astype(np.float64), config.k, -np.inf))
    blocks = measure("blocks", lambda: top_by_products(queries, vectors, config.k))
    figures["blocks_found"] = float(coverage(blocks, exact).mean())
    if importlib.util.find_spec("faiss") is None:
        return figures
    import faiss

    faiss.omp_set_num_threads(1)

    def search(name: str, index: Any) -> None:
        items = measure(name, lambda: index.search(queries, config.k)[1])
        figures[f"{name}_found"] = float(coverage(items, exact).mean())

    flat = faiss.IndexFlatIP(config.dim)
    flat.add(vectors)
    search("faiss_flat", flat)
    del flat
    if config.clusters:
        started = time.process_time()
        index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(config.dim), config.dim, config.clusters, faiss.METRIC_INNER_PRODUCT
        )
        index.train(vectors[: 64 * config.clusters])
        index.add(vectors)
        figures["faiss_ivf_build_s"] = time.process_time() - started
        for probes in config.probes:
            index.nprobe = probes
            search(f"faiss_ivf_{probes}", index)
    return figures


def unit_vectors(
    rng: np.random.Generator, count: int, dim: int, centres: np.ndarray | None = None, spread: float = 0.0
) -> np.ndarray:
    """Draw random vectors of length 1, float32 [count, dim].

    Args:
        rng: draws them.
        count: how many.
        dim: their width.
        centres: of length 1; each vector lies around one of them [centres, dim]. None: anywhere.
        spread: length of what is added to a centre, about.
    """
    vectors = rng.standard_normal((count, dim), dtype=np.float32)
    if centres is not None:
        vectors *= spread / dim**0.5
        for start in range(0, count, 1 << 16):  # bounds memory
            part = vectors[start : start + (1 << 16)]
            part += centres[rng.integers(0, len(centres), len(part))]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
