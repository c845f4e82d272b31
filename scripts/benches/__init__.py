"""The benchmarks behind `scripts/bench.py`, one file a subject, and what they share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    repeats: int,
    warm_ups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each contender, the contenders taking turns so that a noisy machine is noisy to all.

    Args:
        contenders: name to a function without arguments.
        repeats: measured rounds.
        warm_ups: rounds before that, not measured.
        clock: tells the seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warm_ups + repeats):
        for name, work in contenders.items():
            started = clock()
            work()
            if number >= warm_ups:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def resident(field: str) -> float:
    """MiB of this process by Linux's own account; `ru_maxrss` would hold the parent's peak too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 2**10
