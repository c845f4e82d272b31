"""Measure the lists of the baseline `content` in a large catalogue: all scores, some items at a time, and FAISS.

    OMP_NUM_THREADS=1 python scripts/bench.py content

Random vectors, on which approximate indices find the least; texts have neighbours. FAISS is measured where it is
installed (`pip install faiss-cpu`); nothing of the toolkit needs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt

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
    vectors, queries = unit_vectors(rng, config.items, config.dim), unit_vectors(rng, config.users, config.dim)
    figures: dict[str, Any] = {}

    def measure(name: str, rank: Callable[[], np.ndarray]) -> np.ndarray:
        started = time.process_time()
        lists = rank()
        figures[f"{name}_ms_a_user"] = (time.process_time() - started) / config.users * 1e3
        return lists

    exact = measure("all_scores", lambda: top_items((queries @ vectors.T).astype(np.float64), config.k, -np.inf))
    blocks = measure("blocks", lambda: top_by_products(queries, vectors, config.k))
    figures["blocks_found"] = float(coverage(blocks, exact).mean())
    try:
        import faiss
    except ImportError:
        return figures
    faiss.omp_set_num_threads(1)
    flat = faiss.IndexFlatIP(config.dim)
    flat.add(vectors)
    found = measure("faiss_flat", lambda: flat.search(queries, config.k)[1])
    figures["faiss_flat_found"] = float(coverage(found, exact).mean())
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
            found = measure(f"faiss_ivf_{probes}", lambda: index.search(queries, config.k)[1])
            figures[f"faiss_ivf_{probes}_found"] = float(coverage(found, exact).mean())
    return figures


def unit_vectors(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Draw random vectors of length 1, float32 [count, dim]."""
    vectors = rng.standard_normal((count, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
