"""Measure how a transition memory takes new interactions: its changed rows against the whole matrix built again.

    OMP_NUM_THREADS=1 python scripts/bench.py memory

Random counts, and batches of events as the server reads them: each user has two items that were counted already and
one new one. A batch is grown and then read by lists of ten users, since both ways leave work to the first reader.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from jsonargparse.typing import NonNegativeInt, PositiveInt

from benches import interleaved
from distill.baselines.counting import TransitionSettings, count_transitions, reading_weights
from distill.runtime.errors import UserError
from student.transition_memory import TransitionMemory

READERS = 10


@dataclass(frozen=True)
class Config:
    """Measure the growth of a transition memory: python scripts/bench.py memory [--field value ...]."""

    items: PositiveInt = 1_000_000
    """Size of the catalogue."""
    counts: PositiveInt = 10_000_000
    """Counts that are not zero, about."""
    events: PositiveInt = 100
    """New interactions of a batch."""
    batches: PositiveInt = 20
    """Batches that are measured, one after the other."""
    json: Path | None = None
    """File for the figures."""
    seed: NonNegativeInt = 0
    """Of counts and events."""


def main(config: Config) -> dict[str, float]:
    """Return milliseconds of a batch both ways (processor time, medians), and their ratio.

    Raises:
        UserError: both ways count differently.
    """
    rng, settings = np.random.default_rng(config.seed), TransitionSettings()
    pairs = rng.integers(0, config.items, (2, config.counts // 2))
    upper = sp.coo_array((np.ones(pairs.shape[1]), pairs), shape=(config.items, config.items)).tocsr()
    grown = {"rows": TransitionMemory((upper + upper.T).tocsr(), settings)}
    grown["whole"] = grown["rows"]
    turns = dict.fromkeys(grown, 0)
    batches = rng.integers(0, config.items, (config.batches + 1, config.events, 3))

    def take_batch(method: str) -> None:
        sequences = batches[turns[method]]
        turns[method] += 1
        grow = grow_rows if method == "rows" else grow_whole
        grown[method] = grow(grown[method], sequences)

    seconds = interleaved(
        {method: lambda method=method: take_batch(method) for method in grown}, config.batches, clock=time.process_time
    )
    if abs(grown["rows"].counts - grown["whole"].counts).max() > 1e-9:
        raise UserError("Both ways count differently, so their times cannot be compared.")
    return {
        "counts": grown["rows"].counts.nnz,
        "whole_ms": seconds["whole"] * 1e3,
        "rows_ms": seconds["rows"] * 1e3,
        "rows_times_faster": seconds["whole"] / seconds["rows"],
    }


def grow_rows(memory: TransitionMemory, sequences: np.ndarray) -> TransitionMemory:
    """Grow a memory by a new item at the end of each sequence, and read it."""
    grown = memory.grow(list(sequences), [1] * len(sequences))
    grown.probabilities(sequences[:READERS])
    return grown


def grow_whole(memory: TransitionMemory, sequences: np.ndarray) -> TransitionMemory:
    """Do the same by adding whole matrices and normalising all rows."""
    settings = memory.settings
    ends = [np.arange(len(sequences) + 1) * length for length in (3, 2)]
    counted = [
        count_transitions(values.ravel(), offsets, memory.n_items, settings.window, settings.decay)
        for values, offsets in zip((sequences, sequences[:, :2]), ends, strict=True)
    ]
    counts = (memory.counts + counted[0] - counted[1]).tocsr()
    counts.data[np.abs(counts.data) < 1e-12] = 0
    counts.eliminate_zeros()
    total = counts.sum(1)
    scale = np.divide(1, np.sqrt(total), out=np.zeros_like(total), where=total > 0)
    matrix = (sp.diags_array(scale) @ counts).tocsr()
    _ = reading_weights(sequences[:READERS], settings, memory.n_items) @ matrix, np.log1p(total)
    return TransitionMemory(counts, settings)
