"""The demo: a simulated shop; no files are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from distill.data.demo.simulator import FILE, VERSION, Simulator
from distill.data.sources.base import Options, Source

__all__ = ["CLOCK", "FILE", "VERSION", "Simulator", "files", "read"]

CLOCK = 1  # part of the data set's identity: raise it when the same seed would give other times
OPENS = 1672531200  # 2023-01-01, in seconds since 1970
DAY = 86400
FIRST_DAYS = 730  # within which users buy their first item, evenly
MEAN_DAYS = 14  # between two purchases


def files(folder: Path | None, options: Options) -> list[Path]:
    """Return no files."""
    return []


def read(folder: Path | None, options: Options) -> Source:
    """Simulate the demo data set of `options.seed` and `options.users`."""
    simulator = Simulator.build(options.seed)
    sequences = simulator.sample(options.users, options.seed)
    lengths = np.array([len(sequence) for sequence in sequences])
    return Source(
        simulator.items_table(),
        pa.array([f"U{number:05d}" for number in range(options.users)]),
        np.concatenate(sequences),
        np.concatenate([[0], np.cumsum(lengths)]),
        draw_times(lengths, options.seed),
        origin="the simulator",
        extra_files=simulator.save,
    )


def draw_times(lengths: np.ndarray, seed: int) -> np.ndarray:
    """Draw when users buy: from a first day on, with exponential gaps. What they buy does not depend on it.

    Args:
        lengths: purchases of each user [users].
        seed: any integer >= 0.

    Returns:
        Seconds since 1970, rising within a user, user by user [interactions].
    """
    rng = np.random.default_rng([seed, 3])
    gaps = rng.exponential(MEAN_DAYS * DAY, lengths.sum()).astype(np.int64) + 1
    starts = np.cumsum(lengths) - lengths
    gaps[starts] = rng.integers(0, FIRST_DAYS * DAY, len(lengths))
    totals = np.cumsum(gaps)
    before = totals[starts] - gaps[starts]
    return OPENS + totals - np.repeat(before, lengths)
