"""Batches of training samples: sorted by length and padded, or packed several to a row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise

import numpy as np

from teacher.config import TrainingSettings
from teacher.samples import Samples, Sizes
from teacher.tasks import TaskData

# rows of sample numbers: one a row, then as an array [rows, 1], which takes less memory; or several packed
Batch = list[list[int]] | np.ndarray


def epoch_batches(
    data: TaskData, settings: TrainingSettings, epoch: int, learned: Sequence[Sizes | None] | None = None
) -> tuple[Samples, list[Batch]]:
    """Draw one epoch's samples and deal them into batches; the same on every process.

    Args:
        data: the tasks.
        settings: how they are drawn.
        epoch: its number.
        learned: as for `TaskData.epoch`.

    Raises:
        UserError: a task has no samples, or a stream does not fit `max_tokens`.
    """
    samples = data.epoch(settings.tasks, settings.seed, epoch, settings.task_samples, learned)
    rng = np.random.default_rng([settings.seed, epoch])
    return samples, make_batches(samples, settings.batch_tokens, rng, settings.packing, settings.batch_samples)


class EpochDraws:
    """The samples and batches of every epoch, of which one is in memory; the same on every process.

    The learning rate's schedule needs the number of steps beforehand, so each epoch is drawn once to count its batches
    and, but for the first, again when it is trained. Drawing makes no tokens: those of a batch are made when it is
    collated. Only where lengths follow from the texts alone are all samples made once, and their lengths kept. A draw
    depends on the settings and the epoch's number alone.

    Args:
        data: the tasks.
        settings: how many epochs, and how they are drawn.

    Attributes:
        n_batches: of each epoch, on all processes.

    Raises:
        UserError: as `epoch_batches`.
    """

    def __init__(self, data: TaskData, settings: TrainingSettings):
        self._data, self._settings, self._number = data, settings, -1
        self._epoch: tuple[Samples, list[Batch]] | None = None
        self._learned: list[Sequence[Sizes | None] | None] = [None] * settings.epochs
        self.n_batches = [0] * settings.epochs
        for number in reversed(range(settings.epochs)):  # the first is needed first, so it is drawn last and kept
            self.n_batches[number] = len(self[number][1])

    def __getitem__(self, number: int) -> tuple[Samples, list[Batch]]:
        """Return the samples and batches of an epoch, drawn anew unless it is the one in memory."""
        if number != self._number:
            self._number, self._epoch = -1, None  # freed before the next is drawn
            self._epoch = epoch_batches(self._data, self._settings, number, self._learned[number])
            self._number, self._learned[number] = number, self._epoch[0].learned
        assert self._epoch is not None
        return self._epoch


def make_batches(
    samples: Samples, max_tokens: int, rng: np.random.Generator, packing: bool = False, max_samples: int = 0
) -> list[Batch]:
    """Deal samples into batches of at most `max_tokens` with their padding (but one row at least), in random order.

    Args:
        samples: of an epoch.
        max_tokens: rows times the longest row.
        rng: decides the order, and which samples of similar length share a batch.
        packing: several samples a row; else one, batched with samples of similar length.
        max_samples: of a batch without packing; 0: no such limit.
    """
    if packing:
        longest = int(samples.lengths.max(initial=1))
        rows_in_batch = max(max_tokens // longest, 1)
        rows = pack(samples.lengths, max(max_tokens // rows_in_batch, longest), rng)
        rows = [rows[index] for index in rng.permutation(len(rows))]
        return [rows[start : start + rows_in_batch] for start in range(0, len(rows), rows_in_batch)]
    lengths = samples.lengths
    order = np.argsort(lengths + rng.random(len(lengths)), kind="stable")  # random among equals
    bounds = [0]
    for place, length in enumerate(lengths[order]):
        rows = place - bounds[-1]
        if rows and ((rows + 1) * length > max_tokens or rows == max_samples):
            bounds.append(place)
    batches: list[Batch] = [order[start:end, None] for start, end in pairwise([*bounds, len(order)])]
    return [batches[index] for index in rng.permutation(len(batches))]


def pack(lengths: np.ndarray, space: int, rng: np.random.Generator) -> list[list[int]]:
    """Pack samples into rows of at most `space` tokens, by best fit decreasing: each goes where it leaves least space.

    A `space` little larger than the longest sample is enough: where masks are dense, attention costs the square of a
    row.
    """
    rows: list[list[int]] = []
    rows_by_free: list[list[int]] = [[] for _ in range(space + 1)]
    free_mask = 0  # bit n is set where a row has n tokens free
    for sample in np.argsort(-(lengths + rng.random(len(lengths)))).tolist():  # random among equals
        length = int(lengths[sample])
        fitting = free_mask >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = rows_by_free[free].pop()
            if not rows_by_free[free]:
                free_mask ^= 1 << free
            rows[row].append(sample)
        else:
            row, free = len(rows), space
            rows.append([sample])
        rows_by_free[free - length].append(row)
        free_mask |= 1 << (free - length)
    return rows


def padded_size(samples: Samples, batch: Batch) -> int:
    """Tokens of a batch, padding included: rows times the longest row."""
    return len(batch) * max(int(samples.lengths[row].sum()) for row in batch)


def counted_tokens(samples: Samples, batches: list[Batch]) -> np.ndarray:
    """How many tokens the loss counts in each batch, or the sum of their weights [batches]."""
    return np.array([samples.counts[np.hstack(batch)].sum() for batch in batches])


def collate(samples: Samples, batch: Batch, pad: int) -> dict[str, np.ndarray]:
    """Build the network's inputs: rows padded on the right, all [rows, length].

    Labels are −100 where the loss counts nothing; `loss_weights` is there where the samples weigh their tokens. Where
    rows hold several samples, `position_ids` start again with each (and with the padding). Transformers reads the
    boundaries from them and keeps attention within a sample, as long as it gets neither an attention mask nor a cache
    (`use_cache=False`).
    """
    shape = len(batch), max(int(samples.lengths[row].sum()) for row in batch)
    tokens, labels = np.full(shape, pad, dtype=np.int64), np.full(shape, -100, dtype=np.int64)
    positions, weights = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    in_order = iter(samples.take(np.hstack(batch)))
    for line, row in enumerate(batch):
        end = 0
        for sample in islice(in_order, len(row)):
            part = slice(end, end := end + len(sample.tokens))
            tokens[line, part] = sample.tokens
            labels[line, part] = np.where(sample.counted, sample.tokens, -100)
            weights[line, part] = sample.counted
            labels[line, part.start] = -100  # the sample before must not predict it
            positions[line, part] = np.arange(len(sample.tokens))
        positions[line, end:] = np.arange(shape[1] - end)
    inputs = {"input_ids": tokens, "labels": labels}
    if samples.are_weighted:
        inputs["loss_weights"] = weights
    return inputs | {"position_ids": positions} if any(len(row) > 1 for row in batch) else inputs


def mask_codewords(tokens: np.ndarray, pad: int, codewords: np.ndarray, share: float, rng: np.random.Generator) -> None:
    """Replace a random share of the codewords by the pad token, in place; the labels keep them."""
    if share:
        tokens[np.isin(tokens, codewords) & (rng.random(tokens.shape) < share)] = pad
