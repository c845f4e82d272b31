"""Several continuations of one sequence in one forward pass of a causal model: who sees whom.

Candidates or beams share a sequence that is encoded once. An attention mask shows each of their tokens the sequence
up to its place and the tokens of its own branch, and explicit positions let every branch go on where its place is. The
numbers are those of one pass a branch; the sequence's keys and values are there once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def candidate_attention_mask(seen: Tensor, k: int, new: int, width: int) -> tuple[Tensor, Tensor]:
    """The attention mask of candidates that continue a sequence from given places.

    Args:
        seen: tokens of the sequence before each group of candidates [batch, groups].
        k: candidates a group.
        new: tokens a candidate.
        width: tokens of the padded sequences.

    Returns:
        What the tokens of the candidates, group by group, see of the sequence and of each other: bool
        [batch, groups · k · new, width + groups · k · new]; and their positions [batch, groups · k · new].
    """
    seen = seen.repeat_interleave(k * new, dim=1)
    number = torch.arange(seen.shape[1], device=seen.device)
    far = torch.arange(width, device=seen.device) < seen[..., None]
    near = (number[:, None] // new == number // new) & (number[:, None] >= number)
    return torch.cat([far, near.expand(len(seen), -1, -1)], dim=2), seen + number % new


class BeamTree:
    """Beams that grow by one token at a time, all in one growing cache of keys and values.

    Args:
        lengths: tokens of each sequence [batch].
        width: of the padded sequences.
    """

    def __init__(self, lengths: Tensor, width: int):
        self.lengths, self.depth = lengths, 0
        self.visible = (torch.arange(width, device=lengths.device) < lengths[:, None])[:, None]

    def grow(self, parents: Tensor) -> tuple[Tensor, Tensor]:
        """One more token for each beam.

        Args:
            parents: which beam of the last call each goes on from [batch, beams]; 0 in the first call.

        Returns:
            What each sees of all keys, its own the last: bool [batch, beams, keys]; and its position [batch, beams].
        """
        batch, beams = parents.shape
        inherited = self.visible.gather(1, parents[..., None].expand(-1, -1, self.visible.shape[2]))
        own = torch.eye(beams, dtype=torch.bool, device=parents.device).expand(batch, -1, -1)
        self.visible = torch.cat([inherited, own], dim=2)
        self.depth += 1
        return self.visible, (self.lengths + self.depth - 1)[:, None].expand(-1, beams)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores: 0 where visible [batch, queries, keys] → [batch, 1, queries, keys]."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]
