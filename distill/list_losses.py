"""Ranking losses beside the paper's margin, equation (14): pure functions of the students' scores.

All learn the teacher's order of its candidates. `scores` [..., k] are M of each candidate, best first in the teacher's
order; `present` [..., k] says which exist, None: all; `scale` multiplies M, whose differences are small: it is the mean
of a few log-probabilities. Each returns a loss for each list [...].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.losses import rank

ABSENT = -1e9  # score of an absent candidate: its weight is 0, and unlike −∞ it leaves gradients finite


def ranknet(scores: Tensor, present: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Compute the mean over pairs i < j of −log σ(scale · (M_i − M_j)) (RankNet: Burges et al., ICML 2005).

    Up to the reference model, which it leaves out, it is DPO's loss over all pairs of the list (Rafailov et al., 2023).
    """
    position = torch.arange(scores.shape[-1], device=scores.device)
    pairs = position[:, None] < position  # i before j
    if present is not None:
        pairs = pairs & present[..., :, None] & present[..., None, :]
    losses = F.softplus(scale * (scores[..., None, :] - scores[..., :, None]))
    return torch.where(pairs, losses, 0).sum((-1, -2)) / pairs.sum((-1, -2)).clamp(min=1)


def plackett_luce(scores: Tensor, present: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Compute −log of the chance to draw the list in this order, by place (ListMLE: Xia et al., ICML 2008).

    Place by place the next candidate is drawn from those that are left, by the softmax of scale · M. The last place is
    certain, so the mean is over the others.
    """
    if present is None:
        present = torch.ones_like(scores, dtype=torch.bool)
    scaled = (scale * scores).masked_fill(~present, ABSENT)
    left = scaled.flip(-1).logcumsumexp(-1).flip(-1)  # log Σ over this place and all after it
    losses = torch.where(present, left - scaled, 0)
    return losses.sum(-1) / (present.sum(-1) - 1).clamp(min=1)


def softmax_first(scores: Tensor, present: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Compute −log softmax(scale · M) of the first candidate: the best against all others at once.

    Up to the reference model it is S-DPO (Chen et al., NeurIPS 2024) with the other candidates as negatives.
    """
    if present is None:
        present = torch.ones_like(scores, dtype=torch.bool)
    scaled = (scale * scores).masked_fill(~present, ABSENT)
    return torch.where(present[..., 0], scaled.logsumexp(-1) - scaled[..., 0], 0)


def list_losses(margin: float = 0.001, scale: float = 1.0) -> dict[str, Callable[..., Tensor]]:
    """The losses by name.

    Args:
        margin: λ of the paper's loss.
        scale: of the others.
    """
    return {
        "margin": lambda scores, present=None: rank(scores, margin, present),
        "ranknet": partial(ranknet, scale=scale),
        "plackett_luce": partial(plackett_luce, scale=scale),
        "softmax_first": partial(softmax_first, scale=scale),
    }
