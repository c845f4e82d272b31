"""Divergences between teacher and student beside the paper's: pure functions of codeword distributions.

`distill.losses.distill`, equation (11), is the forward KL divergence plus the teacher's entropy. These are the others
of the field. P is the teacher's distribution over the codewords, with the temperature of equation (12), Q the
student's. Each function takes log-probabilities [..., V] and returns the divergence of each distribution [...];
`divergence` averages over the levels, as the losses do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

# Least log-probability of the teacher where Q is the weight: labels give 0 to codewords of other levels, and to those
# that rounding to 16 or 8 bits loses; reverse KL would be infinite there.
FLOOR = -20.0


def kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Compute KL(P ‖ Q) = Σ p (log p − log q) [...]; where p is 0, the term is 0."""
    return (p * torch.where(p > 0, log_p - log_q, 0)).sum(-1)


def forward_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Compute KL(P ‖ Q) (Hinton et al., 2015): Q covers all that P holds likely."""
    return kl(log_p.exp(), log_p, log_q)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Compute KL(Q ‖ P) (MiniLLM: Gu et al., ICLR 2024): Q avoids what P holds unlikely."""
    return kl(log_q.exp(), log_q, log_p.clamp(min=FLOOR))


def jensen_shannon(log_p: Tensor, log_q: Tensor, beta: float = 0.5) -> Tensor:
    """Compute β KL(P ‖ M) + (1 − β) KL(Q ‖ M), M = β P + (1 − β) Q (GKD: Agarwal et al., ICLR 2024).

    Divided by β it tends to forward KL as β goes to 0, divided by 1 − β to reverse KL as β goes to 1.

    Args:
        log_p, log_q: of teacher and student [..., V].
        beta: β, between 0 and 1.
    """
    p, q = log_p.exp(), log_q.exp()
    log_mixture = log_of(beta * p + (1 - beta) * q)
    return beta * kl(p, log_p, log_mixture) + (1 - beta) * kl(q, log_q, log_mixture)


def skewed_kl(log_p: Tensor, log_q: Tensor, skew: float = 0.1) -> Tensor:
    """Compute KL(P ‖ α P + (1 − α) Q) (DistiLLM: Ko et al., ICML 2024); α 0: forward KL.

    Args:
        log_p, log_q: of teacher and student [..., V].
        skew: α, from 0 and below 1.
    """
    p = log_p.exp()
    return kl(p, log_p, log_of(skew * p + (1 - skew) * log_q.exp()))


def skewed_reverse_kl(log_p: Tensor, log_q: Tensor, skew: float = 0.1) -> Tensor:
    """Compute KL(Q ‖ (1 − α) P + α Q) (DistiLLM); finite also where P is 0, if α is not."""
    q = log_q.exp()
    return kl(q, log_q, log_of((1 - skew) * log_p.clamp(min=FLOOR).exp() + skew * q))


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Compute ½ Σ |p − q| (f-distill: Wen et al., ACL 2023), from 0 to 1."""
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


def log_of(mixture: Tensor) -> Tensor:
    """Take the logarithm of probabilities; where they are 0, nothing is weighted by it, and gradients stay finite."""
    return mixture.clamp(min=torch.finfo(mixture.dtype).tiny).log()


def divergences(beta: float = 0.5, skew: float = 0.1) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The divergences by name.

    Args:
        beta: β of `jensen_shannon`.
        skew: α of the skewed ones.
    """
    return {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jensen_shannon": partial(jensen_shannon, beta=beta),
        "skewed_kl": partial(skewed_kl, skew=skew),
        "skewed_reverse_kl": partial(skewed_reverse_kl, skew=skew),
        "total_variation": total_variation,
    }


def divergence(
    name: str,
    log_probs: Tensor,
    teacher_log_probs: Tensor,
    temperature: float = 1.0,
    beta: float = 0.5,
    skew: float = 0.1,
) -> Tensor:
    """Compute a divergence between teacher and student, averaged over the levels.

    Args:
        name: a key of `divergences`.
        log_probs: the student's [..., levels, V].
        teacher_log_probs: the teacher's [..., levels, V]; they are renormalised over V.
        temperature: divides the teacher's log-probabilities, not the student's, as in `losses.distill`.
        beta, skew: as for `divergences`.

    Returns:
        [...].
    """
    teacher = torch.log_softmax(teacher_log_probs.to(log_probs.dtype) / temperature, dim=-1)
    return divergences(beta, skew)[name](teacher, log_probs).mean(-1)
