"""Tree attention: run several continuations of one sequence in one forward pass of a causal model.

Candidates or beams share a sequence that is encoded once. The attention mask lets each of their tokens attend to the
sequence up to the point where its continuation starts, and to the tokens of the same continuation; explicit positions
count on from there. The results are those of one pass for each continuation, but the sequence's keys and values are
computed and stored once.
"""

from __future__ import annotations

import torch
from torch import Tensor


def candidate_attention_mask(seen: Tensor, k: int, new: int, width: int) -> tuple[Tensor, Tensor]:
    """Build the attention mask of candidates that continue a sequence from given positions.

    Args:
        seen: tokens of the sequence before each group of candidates [batch, groups].
        k: candidates of a group.
        new: tokens of a candidate.
        width: tokens of the padded sequences.

    Returns:
        The mask of the candidates' tokens, group by group, over the sequence and then over these tokens themselves:
        bool, True to attend [batch, groups · k · new, width + groups · k · new]; and their positions
        [batch, groups · k · new].
    """
    seen = seen.repeat_interleave(k * new, dim=1)
    token = torch.arange(seen.shape[1], device=seen.device)
    over_sequence = torch.arange(width, device=seen.device) < seen[..., None]
    over_candidate = (token[:, None] // new == token // new) & (token[:, None] >= token)  # causal within a candidate
    mask = torch.cat([over_sequence, over_candidate.expand(len(seen), -1, -1)], dim=2)
    return mask, seen + token % new


class BeamTree:
    """Attention masks of a beam search whose tokens all lie in one KV cache, a token a beam and step.

    Args:
        lengths: tokens of each sequence [batch].
        width: tokens of the padded sequences.

    Attributes:
        visible: the keys that each beam of the last step attends to, bool [batch, beams, keys].
        depth: tokens of each beam so far.
    """

    def __init__(self, lengths: Tensor, width: int):
        self.lengths, self.depth = lengths, 0
        self.visible = (torch.arange(width, device=lengths.device) < lengths[:, None])[:, None]

    def append_beam_tokens(self, parents: Tensor) -> tuple[Tensor, Tensor]:
        """Append a token to each beam.

        Args:
            parents: for each beam, the beam of the last step that it continues [batch, beams]; 0 in the first step.

        Returns:
            The keys that each beam attends to, those of the new tokens last: bool [batch, beams, keys]; and the new
            tokens' positions [batch, beams].
        """
        batch, beams = parents.shape
        inherited = self.visible.gather(1, parents[..., None].expand(-1, -1, self.visible.shape[2]))
        new_tokens = torch.eye(beams, dtype=torch.bool, device=parents.device).expand(batch, -1, -1)
        self.visible = torch.cat([inherited, new_tokens], dim=2)
        self.depth += 1
        return self.visible, (self.lengths + self.depth - 1)[:, None].expand(-1, beams)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a bool mask to one that is added to attention scores, 0 where visible and the dtype's minimum elsewhere.

    [batch, queries, keys] → [batch, 1, queries, keys].
    """
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]
