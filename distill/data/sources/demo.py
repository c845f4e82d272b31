"""The demo: a simulated shop; no files are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from distill.data.demo.simulator import FILE, VERSION, Simulator
from distill.data.sources.base import Options, Source

__all__ = ["FILE", "VERSION", "Simulator", "files", "read"]


def files(folder: Path | None, options: Options) -> list[Path]:
    """Return no files."""
    return []


def read(folder: Path | None, options: Options) -> Source:
    """Simulate the demo data set of `options.seed` and `options.users`."""
    simulator = Simulator.build(options.seed)
    sequences = simulator.sample(options.users, options.seed)
    return Source(
        simulator.items_table(),
        pa.array([f"U{number:05d}" for number in range(options.users)]),
        np.concatenate(sequences),
        np.cumsum([0, *map(len, sequences)]),
        origin="the simulator",
        extra_files=simulator.save,
    )
