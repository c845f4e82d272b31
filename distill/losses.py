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


def distill(
    log_probs: Tensor,
    teacher_log_probs: Tensor,
    temperature: float = 1.0,
    targets: Tensor | None = None,
    alpha: float = 0.0,
) -> Tensor:
    """Equations (11) and (12): cross-entropy to the teacher's teacher-forced codeword distributions.

    Args:
        log_probs: the student's [..., levels, V].
        teacher_log_probs: the teacher's, of the same shape; renormalised over V here, whatever mass lies outside.
        temperature: divides the teacher's log-probabilities; the student's are taken as they are.
        targets: the reference's codewords [..., levels]; needed for alpha.
        alpha: share of the hard label in the weights, 0 (the paper) to 1 (equation 8).

    Returns:
        Per example [...]; equal to KL(teacher ‖ student) up to the teacher's entropy.
    """
    weights = torch.softmax(teacher_log_probs.float() / temperature, dim=-1)
    soft = -(weights * log_probs).sum(-1).mean(-1)
    return soft if not alpha else (1 - alpha) * soft + alpha * nll(log_probs, targets)


def reference_rank(scores: Tensor) -> Tensor:
    """The rank that the teacher gave the reference among the candidates kept, from 1.

    Args:
        scores: the teacher's log P(v|S), the reference first, −∞ for absent candidates [..., k].

    Returns:
        [...]; one more than the candidates that it holds better. A reference out of its beams counts as last.
    """
    return 1 + (scores[..., 1:] > scores[..., :1]).sum(-1)


def confidence(ranks: Tensor, power: float) -> Tensor:
    """Weight of an example whose reference the teacher ranked so: 1 / rank^power; power 0 trusts all alike."""
    return ranks.double() ** -power


def sequence_score(log_probs: Tensor, candidates: Tensor, eta: float = 1.0) -> Tensor:
    """M(v, S) = log P(v|S) / |v|^η (paper 3.2); with η = 1, the mean codeword log-probability.

    Args:
        log_probs: of each candidate under teacher forcing [..., k, levels, V].
        candidates: codewords [..., k, levels].
        eta: length exponent.

    Returns:
        [..., k].
    """
    return mean_score(log_probs.gather(-1, candidates[..., None]).squeeze(-1), eta)


def mean_score(chosen: Tensor, eta: float = 1.0) -> Tensor:
    """M(v, S) from the log-probabilities of the candidate's own codewords [..., levels]. Returns [...]."""
    return chosen.sum(-1) / chosen.shape[-1] ** eta


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
