"""The benchmarks of `scripts/bench.py`, one file for each subject, and their shared functions."""

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
    """Measure the median seconds of each contender; they take turns, so that noise of the machine hits all alike.

    Args:
        contenders: name to a function without arguments.
        repeats: measured rounds.
        warm_ups: rounds before that, not measured.
        clock: returns seconds.
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
    """Read a memory field of this process in MiB from /proc; `ru_maxrss` would include the parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 2**10
