"""The students' objectives (paper 3.1 and 3.2): pure functions of tensors.

`log_probs` are log-softmaxed over the codewords, [..., levels, V]: V is the level's 256 ("level"), or all levels' 1,024
("all"); `targets` are numbers in the same V, [..., levels]. Every loss is averaged over the levels (the positions of
the equations) and returned per example, so that the caller can weight examples.
"""

from __future__ import annotations

import torch
from torch import Tensor


def nll(log_probs: Tensor, targets: Tensor) -> Tensor:
    """Equation (8): negative log-likelihood of the target's codewords. Returns [...]."""
    return -log_probs.gather(-1, targets[..., None]).squeeze(-1).mean(-1)


def smooth(log_probs: Tensor, targets: Tensor, xi: float = 0.1) -> Tensor:
    """Equations (9) and (10): weight 1 − ξ on the target codeword, ξ / (V − 1) on every other. Returns [...]."""
    others = xi / (log_probs.shape[-1] - 1)
    spread = -log_probs.sum(-1).mean(-1)
    return (1 - xi - others) * nll(log_probs, targets) + others * spread


def distill(log_probs: Tensor, teacher_log_probs: Tensor, temperature: float = 1.0) -> Tensor:
    """Equations (11) and (12): cross-entropy to the teacher's teacher-forced codeword distributions.

    Args:
        log_probs: the student's [..., levels, V].
        teacher_log_probs: the teacher's, of the same shape; renormalised over V here, whatever mass lies outside.
        temperature: divides the teacher's log-probabilities; the student's are taken as they are.

    Returns:
        Per example [...]; equal to KL(teacher ‖ student) up to the teacher's entropy.
    """
    weights = torch.softmax(teacher_log_probs.float() / temperature, dim=-1)
    return -(weights * log_probs).sum(-1).mean(-1)


def sequence_score(log_probs: Tensor, candidates: Tensor, eta: float = 1.0) -> Tensor:
    """M(v, S) = log P(v|S) / |v|^η (paper 3.2); with η = 1, the mean codeword log-probability.

    Args:
        log_probs: of each candidate under teacher forcing [..., k, levels, V].
        candidates: codewords [..., k, levels].
        eta: length exponent.

    Returns:
        [..., k].
    """
    levels = candidates.shape[-1]
    return log_probs.gather(-1, candidates[..., None]).squeeze(-1).sum(-1) / levels**eta


def rank(scores: Tensor, margin: float = 0.001, present: Tensor | None = None) -> Tensor:
    """Equation (14): Σ_{i<j} max(0, M(v_j) − M(v_i) + (j − i)·λ) over candidates ordered best first.

    Args:
        scores: M of each candidate [..., k].
        margin: λ.
        present: which candidates exist [..., k]; pairs with an absent one count nothing.

    Returns:
        Per example [...].
    """
    k = scores.shape[-1]
    place = torch.arange(k, device=scores.device)
    gap = place[None, :] - place[:, None]  # j − i
    hinge = (scores[..., None, :] - scores[..., :, None] + gap * margin).clamp(min=0)
    pairs = gap > 0
    if present is not None:
        pairs = pairs & present[..., None, :] & present[..., :, None]
    return torch.where(pairs, hinge, 0).sum((-1, -2))
