"""The samples of an epoch: how long each is, and its tokens, which are made when a batch asks for them.

Every process knows the lengths of all samples, for batches must be the same everywhere; it makes the tokens of its own
batches alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MADE_AT_ONCE = 4096  # samples that are made, and dropped, to learn their lengths


@dataclass(frozen=True)
class Sample:
    """One training sequence: token numbers, and which of them the loss counts, bool or float weights; both [length]."""

    tokens: np.ndarray
    counted: np.ndarray


class Sizes(NamedTuple):
    """Tokens of each sample, and how many the loss counts, or the sum of their weights (float64); both [n]."""

    lengths: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class TaskDraw:
    """What an epoch draws of a task.

    Attributes:
        n: samples.
        make: numbers of samples → the samples, in their order.
        sizes: of all samples, where they follow from fewer numbers than the tokens; None: they are made to learn them.
    """

    n: int
    make: Callable[[np.ndarray], list[Sample]]
    sizes: Sizes | None = None


class Samples:
    """The samples of an epoch, task by task.

    Args:
        draws: of the tasks.
        learned: sizes of the draws, as `learned` of the same samples drawn before; None: not known.

    Attributes:
        lengths: tokens of each sample [n].
        counts: tokens of each that the loss counts, int64, or the sums of their weights, float64 [n].
        learned: sizes of the draws whose samples had to be made for it; None for the others.
    """

    def __init__(self, draws: Sequence[TaskDraw], learned: Sequence[Sizes | None] | None = None):
        self._draws = [draw for draw in draws if draw.n]
        known = learned or [None] * len(self._draws)
        self.learned = [
            size or learn_sizes(draw) if draw.sizes is None else None
            for draw, size in zip(self._draws, known, strict=True)
        ]
        sizes = [draw.sizes or size for draw, size in zip(self._draws, self.learned, strict=True)]
        self.lengths = np.concatenate([np.zeros(0, np.int64), *(size.lengths for size in sizes if size)])
        self.counts = np.concatenate([np.zeros(0, np.int64), *(size.counts for size in sizes if size)])
        self._ends = np.cumsum([draw.n for draw in self._draws])

    @staticmethod
    def of(samples: Sequence[Sample]) -> Samples:
        """Build samples that are all in memory."""
        return Samples([TaskDraw(len(samples), lambda rows: [samples[row] for row in rows])])

    @property
    def are_weighted(self) -> bool:
        """Whether a token may count other than once or not at all."""
        return self.counts.dtype != np.int64

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Sample:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.take(np.array([row]))[0]

    def take(self, rows: np.ndarray) -> list[Sample]:
        """Make the samples of these numbers, in their order."""
        place = np.searchsorted(self._ends, rows, side="right")
        samples: list[Sample] = [None] * len(rows)  # type: ignore[list-item]
        for number in np.unique(place).tolist():
            where = np.flatnonzero(place == number)
            draw = self._draws[number]
            numbers = rows[where] - (self._ends[number] - draw.n)  # within the draw
            for at, sample in zip(where.tolist(), draw.make(numbers), strict=True):
                samples[at] = sample
        return samples


def learn_sizes(draw: TaskDraw) -> Sizes:
    """Make all samples of a draw, some at a time, and keep their sizes: int32 lengths, int32 or float64 counts."""
    lengths, counts, are_weighted = [], [], False
    for start in range(0, draw.n, MADE_AT_ONCE):
        for sample in draw.make(np.arange(start, min(start + MADE_AT_ONCE, draw.n))):
            lengths.append(len(sample.tokens))
            are_weighted |= sample.counted.dtype != bool
            counts.append(sample.counted.sum(dtype=np.float64))
    return Sizes(np.array(lengths, np.int32), np.array(counts, np.float64 if are_weighted else np.int32))
