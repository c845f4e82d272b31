"""Losses over the teacher's candidates beside the paper's margin, equation (14): pure functions of scores.

`scores` [..., k] are M of each candidate, best first in the teacher's order; `present` [..., k] says which exist, None:
all; `scale` multiplies M, whose differences are small: it is the mean of a few log-probabilities. Some read the
teacher's log P(v|S) of each candidate too, `teacher` [..., k], or a reference model's M, `reference` [..., k]. Each
returns a loss for each list [...].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.losses import rank

ABSENT = -1e9  # score of an absent candidate: its weight is 0, and unlike −∞ it leaves gradients finite
TAIL = 1e-6  # least mass of all items outside the list: rounding can take their sum to 1 and above


def ranknet(scores: Tensor, present: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Compute the mean over pairs i < j of −log σ(scale · (M_i − M_j)) (RankNet: Burges et al., ICML 2005)."""
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
    """Compute −log softmax(scale · M) of the first candidate: the best against all others at once."""
    if present is None:
        present = torch.ones_like(scores, dtype=torch.bool)
    scaled = (scale * scores).masked_fill(~present, ABSENT)
    return torch.where(present[..., 0], scaled.logsumexp(-1) - scaled[..., 0], 0)


def listnet(
    scores: Tensor, teacher: Tensor, present: Tensor | None = None, scale: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Compute the cross-entropy of softmax(teacher / temperature) and softmax(scale · M) (ListNet: Cao et al., 2007).

    Both are over the candidates of the list.
    """
    if present is None:
        present = torch.ones_like(scores, dtype=torch.bool)
    weights = (teacher / temperature).masked_fill(~present, ABSENT).clamp(min=ABSENT).softmax(-1) * present
    return -(weights * (scale * scores).masked_fill(~present, ABSENT).log_softmax(-1)).sum(-1)


def item_kl(log_probs: Tensor, teacher: Tensor, present: Tensor | None = None) -> Tensor:
    """Compute KL(P ‖ Q) of the teacher's and the student's distributions over whole items.

    Exact for the candidates; all other IDs are one outcome, the tail. By the chain rule the whole KL is at least this.

    Args:
        log_probs: the student's log Q(v|S) of each candidate, distinct IDs [..., k].
        teacher: the teacher's log P(v|S), −∞ allowed [..., k].
        present: as for the others.
    """
    if present is not None:
        log_probs, teacher = (each.masked_fill(~present, -torch.inf) for each in (log_probs, teacher))
    p, q = teacher.exp(), log_probs.exp()
    log_ratio = torch.where(p > 0, teacher - log_probs, 0)
    p_tail, q_tail = ((1 - each.sum(-1)).clamp(min=TAIL) for each in (p, q))
    return (p * log_ratio).sum(-1) + p_tail * (p_tail.log() - q_tail.log())


def rewards(items: Tensor, target: Tensor) -> Tensor:
    """Reward the beams of a policy by the real next item (after MiniOneRec, 2025: its rule and ranking rewards).

    The target gets 1. The others share −1 by their places, 1 / log₂(1 + place): a wrong item costs most in front. Where
    the target is not among the beams, the same holds for all of them.

    Args:
        items: item numbers of the beams, best first, -1 for none [n, k].
        target: the real next items [n].

    Returns:
        float32 [n, k], 0 for none.
    """
    place = torch.arange(1, items.shape[-1] + 1, device=items.device)
    hit = items == target[:, None]
    costs = torch.where(hit | (items < 0), 0, 1 / torch.log2(1 + place.float()))
    return hit.float() - costs / costs.sum(-1, keepdim=True).clamp(min=torch.finfo(costs.dtype).tiny)


def grpo(
    scores: Tensor,
    reward: Tensor,
    reference: Tensor,
    present: Tensor | None = None,
    kl_weight: float = 0.001,
    length: float = 1.0,
) -> Tensor:
    """Compute GRPO's loss of one update on fresh beams (Shao et al., 2024): −mean(A · M) + β · mean(KL).

    A is the reward, normalised over the group of beams. The policy has not changed since it made the beams, so its
    ratio to itself is 1 and nothing is clipped. KL is estimated as exp(d) − d − 1, where d is
    log Q_reference(v|S) − log Q(v|S).

    Args:
        scores: the policy's M of its beams [..., k].
        reward: [..., k].
        reference: a frozen model's M [..., k].
        present: which beams exist [..., k]; None: all.
        kl_weight: β.
        length: log Q(v|S) / M.

    Returns:
        [...].
    """
    if present is None:
        present = torch.ones_like(scores, dtype=torch.bool)
    count = present.sum(-1, keepdim=True).clamp(min=1)
    centred = torch.where(present, reward - (reward * present).sum(-1, keepdim=True) / count, 0)
    advantage = centred / ((centred**2).sum(-1, keepdim=True) / count).sqrt().clamp(min=1e-6)
    difference = length * (reference - scores)
    losses = kl_weight * (difference.exp() - difference - 1) - advantage * scores
    return (torch.where(present, losses, 0) / count).sum(-1)


def list_loss(
    name: str,
    scores: Tensor,
    present: Tensor | None = None,
    teacher: Tensor | None = None,
    reference: Tensor | None = None,
    margin: float = 0.001,
    scale: float = 1.0,
    temperature: float = 1.0,
    length: float = 1.0,
    kl_weight: float = 0.001,
) -> Tensor:
    """Compute one of the losses.

    `dpo` and `s_dpo` are `ranknet` and `softmax_first` of M − M_reference: DPO over all pairs of the list (Rafailov et
    al., NeurIPS 2023) and S-DPO (Chen et al., NeurIPS 2024), with scale as β.

    Args:
        name: margin (equation 14), ranknet, plackett_luce, softmax_first, listnet, item_kl, dpo, s_dpo or grpo.
        scores: M of each candidate, best first in the teacher's order [..., k].
        present: which exist [..., k]; None: all.
        teacher: the teacher's log P(v|S), for listnet and item_kl; for grpo the rewards [..., k].
        reference: M of a reference model, for dpo, s_dpo and grpo [..., k].
        margin: λ of equation (14).
        scale: of the others.
        temperature: divides `teacher` in listnet.
        length: log Q(v|S) / M, |v|^η; for item_kl and grpo.
        kl_weight: β of grpo.

    Returns:
        [...].
    """
    if name == "margin":
        return rank(scores, margin, present)
    if name == "item_kl":
        assert teacher is not None
        return item_kl(scores * length, teacher, present)
    if name == "listnet":
        assert teacher is not None
        return listnet(scores, teacher, present, scale, temperature)
    if name == "grpo":
        assert teacher is not None and reference is not None
        return grpo(scores, teacher, reference, present, kl_weight, length)
    if name in ("dpo", "s_dpo"):
        assert reference is not None
        scores = scores - reference
    return ORDER_LOSSES[name](scores, present, scale)


ORDER_LOSSES: dict[str, Callable[[Tensor, Tensor | None, float], Tensor]] = {
    "ranknet": ranknet,
    "plackett_luce": plackett_luce,
    "softmax_first": softmax_first,
    "dpo": ranknet,
    "s_dpo": softmax_first,
}
