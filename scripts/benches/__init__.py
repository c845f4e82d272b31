"""The benchmarks behind `scripts/bench.py`, one file a subject, and what they share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(contenders: Mapping[str, Callable[[], object]], repeats: int, warm_ups: int = 1) -> dict[str, float]:
    """Median seconds of each contender, the contenders taking turns so that a noisy machine is noisy to all.

    Args:
        contenders: name to a function without arguments.
        repeats: measured rounds.
        warm_ups: rounds before that, not measured.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warm_ups + repeats):
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            if number >= warm_ups:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
