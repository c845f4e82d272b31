"""Padded or packed token states: the same results, with or without arithmetic on the padding.

Linear maps, norms and dropout work token by token, so they can run on the real tokens alone; attention needs padded
rows again. On a CPU this saves the padding's share of the work. Compiled graphs and GPUs prefer static shapes.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Packing:
    """Moves token states between padded [batch, length, dim] and packed [1, tokens, dim].

    Args:
        present: nonzero where there is a token [batch, length].
    """

    def __init__(self, present: Tensor):
        self.shape, self.places = present.shape, present.flatten().nonzero().squeeze(1)

    def pack(self, x: Tensor) -> Tensor:
        """Drop the padding: [batch, length, dim] → [1, tokens, dim]."""
        return x.flatten(0, 1)[self.places][None]

    def pad(self, x: Tensor) -> Tensor:
        """Restore the padding as zeros: [1, tokens, dim] → [batch, length, dim]."""
        padded = x.new_zeros(self.shape.numel(), x.shape[-1])
        return padded.index_copy_(0, self.places, x[0]).view(*self.shape, -1)


class NoPacking:
    """The interface of `Packing` for states that remain padded."""

    def pack(self, x: Tensor) -> Tensor:
        """Return x unchanged."""
        return x

    def pad(self, x: Tensor) -> Tensor:
        """Return x unchanged."""
        return x


NO_PACKING = NoPacking()


def choose_packing(present: Tensor) -> Packing | NoPacking:
    """Pack on a CPU if there is padding, outside compiled graphs; `present` is bool [batch, length]."""
    if present.device.type != "cpu" or torch.compiler.is_compiling() or bool(present.all()):
        return NO_PACKING
    return Packing(present)
