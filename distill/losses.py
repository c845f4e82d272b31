"""The losses of the students (paper 3.1 and 3.2): pure functions of tensors.

`log_probs` [..., levels, V] are the student's, after log-softmax over the codewords: V is the codebook size of a level
(scope "level" or "trie"), or the codewords of all levels (scope "all"). `targets` [..., levels] index the same V. Every
loss is averaged over the levels (the positions of the equations) and returned for each example [...], so that the
caller can weight examples.
"""

from __future__ import annotations

import torch
from torch import Tensor


def nll(log_probs: Tensor, targets: Tensor) -> Tensor:
    """Compute the negative log-likelihood of the target's codewords, equation (8).

    Args:
        log_probs: [..., levels, V].
        targets: the target's codewords [..., levels].

    Returns:
        [...].
    """
    return -log_probs.gather(-1, targets[..., None]).squeeze(-1).mean(-1)


def smooth(log_probs: Tensor, targets: Tensor, xi: float = 0.1, allowed: Tensor | None = None) -> Tensor:
    """Compute label smoothing, equations (9), (10): weight 1 − ξ on the target codeword, ξ / (V − 1) on every other.

    Args:
        log_probs: [..., levels, V].
        targets: the target's codewords [..., levels].
        xi: ξ, the weight of all other codewords together.
        allowed: bool, the codewords of the softmax, the target's among them [..., levels, V]; V is their number then.
            None: all.

    Returns:
        [...].
    """
    if allowed is None:
        other_weight = xi / (log_probs.shape[-1] - 1)
        all_codewords = -log_probs.sum(-1).mean(-1)
        return (1 - xi - other_weight) * nll(log_probs, targets) + other_weight * all_codewords
    target = -log_probs.gather(-1, targets[..., None]).squeeze(-1)
    others = torch.where(allowed, -log_probs, 0).sum(-1) - target
    count = (allowed.sum(-1) - 1).clamp(min=1)
    return ((1 - xi) * target + xi * others / count).mean(-1)


def distill(
    log_probs: Tensor,
    teacher_log_probs: Tensor,
    temperature: float = 1.0,
    targets: Tensor | None = None,
    alpha: float = 0.0,
) -> Tensor:
    """Compute the cross-entropy to the teacher's codeword distributions under teacher forcing, equations (11), (12).

    Args:
        log_probs: the student's [..., levels, V].
        teacher_log_probs: the teacher's [..., levels, V]; they are renormalised over V.
        temperature: divides the teacher's log-probabilities, not the student's.
        targets: the reference's codewords [..., levels]; needed where alpha is not 0.
        alpha: weight of the hard label, from 0 (the paper) to 1 (equation 8).

    Returns:
        [...]; with alpha 0, KL(teacher ‖ student) plus the teacher's entropy.
    """
    weights = torch.softmax(teacher_log_probs.float() / temperature, dim=-1)
    soft = -(weights * log_probs).sum(-1).mean(-1)
    return soft if not alpha else (1 - alpha) * soft + alpha * nll(log_probs, targets)


def prefix(log_probs: Tensor, targets: Tensor, focus: float = 0.0) -> Tensor:
    """Compute the loss of the target's prefixes, which beams must keep: Σ_t w_t · L_t (APAO: Yu et al., 2026).

    L_t = −(1/t) log P(first t codewords), t from 1 to levels − 1, and w_t ∝ L_t · exp(focus · L_t), without gradients:
    the likelier a prefix is to be pruned, the more it weighs. The authors' code takes the weights from the means over a
    batch; here each example has its own, so that the loss does not depend on how a batch is split.

    Args:
        log_probs: [..., levels, V], at least two levels.
        targets: the target's codewords [..., levels].
        focus: η of the paper, from 0.

    Returns:
        [...].
    """
    of_codewords = -log_probs.gather(-1, targets[..., None]).squeeze(-1)[..., :-1]
    prefixes = of_codewords.cumsum(-1) / torch.arange(1, of_codewords.shape[-1] + 1, device=log_probs.device)
    known = prefixes.detach()
    weights = torch.softmax(known.clamp(min=torch.finfo(known.dtype).tiny).log() + focus * known, dim=-1)
    return (weights * prefixes).sum(-1)


def features(guesses: Tensor, states: Tensor) -> Tensor:
    """Compute 1 − cos between the student's guesses and the teacher's states, averaged over levels and layers.

    With several layers: layer-wise feature distillation (SLMRec: Xu et al., ICLR 2025, without its losses of norms).

    Args:
        guesses: projected states of the student [..., levels, layers, d].
        states: the teacher's, of any scale [..., levels, layers, d].

    Returns:
        [...].
    """
    guesses = guesses.to(torch.promote_types(guesses.dtype, torch.float32))
    return 1 - torch.cosine_similarity(guesses, states.to(guesses.dtype), dim=-1).mean((-2, -1))


def reference_rank(scores: Tensor) -> Tensor:
    """Find the rank of the reference among the teacher's candidates, from 1.

    Args:
        scores: the teacher's log P(v|S), the reference first, −∞ for absent candidates [..., k].

    Returns:
        [...]; 1 + the number of candidates with a higher score. A reference outside the beams is therefore last.
    """
    return 1 + (scores[..., 1:] > scores[..., :1]).sum(-1)


def confidence(ranks: Tensor, power: float) -> Tensor:
    """Weight examples by the teacher's rank of the reference: 1 / rank^power; power 0 weights all equally [...]."""
    return ranks.double() ** -power


def sequence_score(log_probs: Tensor, candidates: Tensor, eta: float = 1.0) -> Tensor:
    """Compute M(v, S) = log P(v|S) / |v|^η (paper 3.2); with η = 1, the mean codeword log-probability.

    Args:
        log_probs: of each candidate under teacher forcing [..., k, levels, V].
        candidates: the candidates' codewords [..., k, levels].
        eta: η, exponent of the length.

    Returns:
        [..., k].
    """
    return mean_score(log_probs.gather(-1, candidates[..., None]).squeeze(-1), eta)


def mean_score(codeword_log_probs: Tensor, eta: float = 1.0) -> Tensor:
    """Compute M(v, S) from the log-probabilities of a candidate's codewords, [..., levels] → [...]."""
    return codeword_log_probs.sum(-1) / codeword_log_probs.shape[-1] ** eta


def rank(scores: Tensor, margin: float = 0.001, present: Tensor | None = None) -> Tensor:
    """Compute the ranking loss, equation (14): Σ_{i<j} max(0, M(v_j) − M(v_i) + (j − i)·λ), candidates best first.

    Args:
        scores: M of each candidate, in the teacher's order [..., k].
        margin: λ.
        present: bool, which candidates exist [..., k]; pairs with an absent one are left out. None: all exist.

    Returns:
        [...].
    """
    position = torch.arange(scores.shape[-1], device=scores.device)
    gap = position[None, :] - position[:, None]  # j − i
    hinge = (scores[..., None, :] - scores[..., :, None] + gap * margin).clamp(min=0)
    pairs = gap > 0
    if present is not None:
        pairs = pairs & present[..., None, :] & present[..., :, None]
    return torch.where(pairs, hinge, 0).sum((-1, -2))
