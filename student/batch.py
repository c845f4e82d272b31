"""What is trained between two optimiser steps: the global batch of all processes, and one process's part of a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class GlobalBatch:
    """What all processes train in one optimiser step.

    Attributes:
        sequences: item numbers, padded with PAD on the right [rows, items].
        rows, places: the row of each example, and the items there before its target [n].
        targets: item numbers [n].
        label_rows: of the examples in their label block [n].
        label_invalid: see `Batch` [n].
        weights, rank_weights: of the generative and of the ranking loss [n]; `total`, `rank_total`: their sums.
        draws: random numbers in [0, 1) [n].
        pseudo_ids: codewords of the candidates where these are no items [n, k, levels].
        on_policy: whether the student's own items are learnt, after one prefix of each row; weights are 0 elsewhere.
    """

    sequences: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    label_rows: np.ndarray
    label_invalid: np.ndarray
    weights: np.ndarray
    total: float
    rank_weights: np.ndarray
    rank_total: float
    draws: np.ndarray
    pseudo_ids: np.ndarray | None
    on_policy: bool


@dataclass(frozen=True)
class Batch:
    """One process's part of one accumulation step.

    Attributes:
        sequences: item numbers, padded with PAD on the right [rows, items].
        rows, places: the row of each example, and the items there before its target [n].
        targets: item numbers [n].
        label_invalid: whether only the item itself is trained [n]: the sequence is reversed, so that the labels are of
            another target, or a plain teacher knows the target as well.
        weights: of the generative loss [n]; `total`: their sum in the whole global batch.
        rank_weights: of the ranking loss, 0 where it is left out [n]; `rank_total`: their sum in the global batch.
        ranked_examples: in one pass, the examples of each row whose candidates are ranked, as numbers in this batch,
            PAD for none [rows, groups].
        count: examples in the whole global batch.
        last: whether the optimiser step follows.
        one_pass: whether sequences hold the targets.
        on_policy: whether the student's own items are yet to come, with log-probabilities or rewards
            (student/on_policy.py).
        draws: random numbers in [0, 1), where on_policy [n].
        candidates: item numbers, the reference first, PAD for none [n, k].
        candidate_scores: the teacher's log P(v|S) of the candidates, −∞ for none [n, k].
        pseudo_ids: codewords of candidates that are no items, in place of `candidates`, the reference first
            [n, k, levels].
        log_probs: the teacher's, float16 [n, levels, V].
        states: the teacher's states before each codeword, less their mean, float32 [n, levels, layers, features].
    """

    sequences: Tensor
    rows: Tensor
    places: Tensor
    targets: Tensor
    label_invalid: Tensor
    weights: Tensor
    total: float
    rank_weights: Tensor
    rank_total: float
    ranked_examples: Tensor | None
    count: int
    last: bool
    one_pass: bool
    on_policy: bool = False
    draws: Tensor | None = None
    candidates: Tensor | None = None
    candidate_scores: Tensor | None = None
    pseudo_ids: Tensor | None = None
    log_probs: Tensor | None = None
    states: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Move all tensors to a device."""
        return move_tensors(self, device)


BatchType = TypeVar("BatchType")


def move_tensors(batch: BatchType, device: torch.device) -> BatchType:
    """Copy a dataclass with all of its tensors on a device."""
    values = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **values)
