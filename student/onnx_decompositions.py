"""Operators of the search that ONNX lacks, in operators that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def stable_sort(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """Sort by ONNX's TopK, which puts the lower index first where values are equal: a stable sort.

    TopK takes no int8 in ONNX Runtime.
    """
    values, order = aten.topk(x.int() if x.dtype == torch.int8 else x, x.shape[dim], dim, descending, True)
    return values.to(x.dtype), order


def stable_argsort(x: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Tensor:
    """Return the order of `stable_sort`."""
    return stable_sort(x, stable=stable, dim=dim, descending=descending)[1]


def searchsorted(sequence: Tensor, values: Tensor, **options: Any) -> Tensor:
    """Count the elements below each value: by bisection in one sequence, by comparison with all of short rows.

    Args:
        sequence: sorted [n], or short rows [batch, length].
        values: [...], or [batch, any].
        options: those of `torch.searchsorted`, at their defaults.
    """
    if sequence.dim() > 1:
        return (sequence[..., None, :] < values[..., None]).sum(-1)
    below, step = torch.zeros_like(values, dtype=torch.long), 1 << (sequence.shape[0].bit_length() - 1)
    while step:
        last = below + step - 1  # the values are above all elements up to it, or above `below` elements as before
        is_above = (last < sequence.shape[0]) & (sequence[last.clamp(max=sequence.shape[0] - 1)] < values)
        below, step = torch.where(is_above, below + step, below), step >> 1
    return below


def index(x: Tensor, indices: list[Tensor | None]) -> Tensor:
    """Index by int64: ONNX's GatherND takes no int32."""
    if all(numbers is None or numbers.dtype != torch.int32 for numbers in indices):
        return NotImplemented
    return aten.index.Tensor(x, [numbers if numbers is None else numbers.long() for numbers in indices])


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.sort.stable: stable_sort,
    aten.argsort.stable: stable_argsort,
    aten.searchsorted.Tensor: searchsorted,
    aten.index.Tensor: index,
}
