"""Batches for networks over items: windows of training sequences in which every position predicts the next item.

As in `batches.py`, losses are means over a global batch, which is the same for any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.data.dataset import PAD, Dataset
from distill.data.examples import ragged_range
from distill.labels.store import LabelStore
from student.batch import move_tensors
from student.batches import check_labels
from student.config import BatchSettings
from student.layout import shard_rows
from student.ranked_lists import ExampleIndex


class Windows(NamedTuple):
    """Training sequences cut to the length of a history.

    Attributes:
        inputs: item numbers padded with PAD on the right [n, width].
        targets: the item after each of them, PAD where nothing is trained [n, width].
        label_rows: row of the teacher's label of each target, PAD for none [n, width].
    """

    inputs: np.ndarray
    targets: np.ndarray
    label_rows: np.ndarray


@dataclass(frozen=True)
class WindowRanges:
    """Windows as ranges of the sequences, from which those of a batch are made; 16 bytes each.

    Attributes:
        values: item numbers of all sequences [interactions].
        label_rows: row of the teacher's label of each interaction, PAD for none [interactions]; None: no teacher.
        starts: place of each window's first item in `values` [n].
        lengths: items that each reads; the one after them is a target alone [n].
        width: of the windows that are made.
    """

    values: np.ndarray
    label_rows: np.ndarray | None
    starts: np.ndarray
    lengths: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: np.ndarray) -> Windows:
        """Make the windows of these numbers."""
        column = np.arange(self.width)
        known = column < self.lengths[rows, None]
        places = np.where(known, self.starts[rows, None] + column, 0)

        def gather(values: np.ndarray, places: np.ndarray) -> np.ndarray:
            return np.where(known, values[places], PAD).astype(np.int64)

        targets = np.where(known, places + 1, 0)
        labels = np.full(known.shape, PAD) if self.label_rows is None else gather(self.label_rows, targets)
        return Windows(gather(self.values, places), gather(self.values, targets), labels)


class Candidates(NamedTuple):
    """The teacher's candidates of each label.

    Attributes:
        items: item numbers, PAD for none [labels, k].
        scores: their log P(v|S), −∞ for none [labels, k].
    """

    items: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class ItemBatch:
    """One process's part of one accumulation step.

    Attributes:
        inputs: item numbers padded with PAD on the right [rows, items].
        places: True where the next item is trained [rows, items].
        targets: the next items at these places [n].
        weight: of every target: 1, or 0 in a part that only keeps the processes in step.
        candidates, scores: as in `Candidates`, for the targets [n, k]; None without a teacher.
        count: targets in the whole global batch.
        labelled: how many of these have candidates.
        last: whether the optimiser step follows.
    """

    inputs: Tensor
    places: Tensor
    targets: Tensor
    weight: float
    candidates: Tensor | None
    scores: Tensor | None
    count: int
    labelled: int
    last: bool

    def to(self, device: torch.device) -> ItemBatch:
        """Move all tensors to a device."""
        return move_tensors(self, device)


class ItemBatchSampler:
    """All training windows, epoch by epoch.

    Args:
        windows: of all users.
        candidates: the teacher's; None: only the next items are trained.
        settings: size and order of batches.
        process, processes: number of this process, and how many there are.

    Attributes:
        total: targets per epoch, on all processes.
    """

    def __init__(
        self,
        windows: WindowRanges,
        candidates: Candidates | None,
        settings: BatchSettings,
        process: int = 0,
        processes: int = 1,
    ):
        self.windows, self.candidates, self.settings = windows, candidates, settings
        self.process, self.processes = process, processes
        self.total = int(windows.lengths.sum())

    def batches(self, epoch: int, skip: int = 0) -> Iterator[ItemBatch]:
        """Yield this process's parts of an epoch's global batches, without the first `skip` of these."""
        size = self.settings.batch_size * self.processes * self.settings.accumulation
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.windows))
        for start in range(skip * size, len(order), size):
            group = self.windows.take(order[start : start + size])
            rows = np.arange(len(group.inputs))
            shares = shard_rows(rows, self.process, self.processes, self.settings.accumulation)
            for step, share in enumerate(shares):
                yield self._local_batch(group, share, last=step == len(shares) - 1)

    def _local_batch(self, group: Windows, rows: np.ndarray, last: bool) -> ItemBatch:
        """Take some rows of a global batch; without rows, the first with weight 0."""
        weight = 1.0 if len(rows) else 0.0
        inputs, targets, label_rows = (values[rows if len(rows) else [0]] for values in group)
        places = targets != PAD
        length = max(int((inputs != PAD).sum(1).max()), 1)
        candidates = scores = None
        if self.candidates is not None:
            labels = label_rows[places]
            items = np.where(labels[:, None] >= 0, self.candidates.items[labels], PAD)
            candidates, scores = torch.from_numpy(items), torch.from_numpy(self.candidates.scores[labels])
        return ItemBatch(
            inputs=torch.from_numpy(inputs[:, :length]),
            places=torch.from_numpy(places[:, :length]),
            targets=torch.from_numpy(targets[places]),
            weight=weight,
            candidates=candidates,
            scores=scores,
            count=int((group.targets != PAD).sum()),
            labelled=int((group.label_rows >= 0).sum()),
            last=last,
        )


def read_windows(dataset: Dataset, store: LabelStore | None, length: int) -> tuple[WindowRanges, Candidates | None]:
    """Cut all training sequences into windows, and read the teacher's candidates without its codeword distributions.

    Raises:
        UserError: labels of another split or data set, or nothing to train.
    """
    index = ExampleIndex(dataset.targets("train", 1))
    check_labels(store, len(index) if store is None else store.rows)
    ranges = partial(cut_windows, dataset.values, dataset.offsets[:-1], dataset.training_lengths(), length)
    if store is None:
        return ranges(None), None
    columns = store.read("user", "position", "target", "candidates", "candidate_scores")
    numbers = index.find_labelled(columns["user"], columns["position"], columns["target"], store)
    examples = index.take(numbers)
    label_rows = np.full(len(dataset.values), PAD)
    label_rows[dataset.offsets[examples.users] + examples.positions] = np.arange(len(numbers))
    candidates = columns["candidates"].astype(np.int64), columns["candidate_scores"].astype(np.float32)
    return ranges(label_rows), Candidates(*candidates)


def cut_windows(
    values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, width: int, label_rows: np.ndarray | None
) -> WindowRanges:
    """Cut sequences to windows; neighbours share one item, so that every target comes once.

    Args:
        values: item numbers of all sequences [interactions].
        starts: place of each sequence's first item [users].
        lengths: items of each that are trained [users].
        width: items that a window reads.
        label_rows: as `WindowRanges.label_rows`.
    """
    targets = np.maximum(lengths - 1, 0)
    user, number = ragged_range(-(-targets // width))
    first = number * width
    return WindowRanges(values, label_rows, starts[user] + first, np.minimum(targets[user] - first, width), width)
