"""Where the paper's equations (`distill/losses.py`) meet batches and networks.

Every function returns this process's part of the global batch's loss: a weighted sum over its examples, divided by the
weights of the whole global batch. The parts of all processes and accumulation steps add up to the mean.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from distill import losses
from distill.data.dataset import PAD
from distill.decoding.children import EXCLUDED, renormalise
from distill.decoding.trie import Trie
from distill.divergences import divergence
from distill.list_losses import list_loss
from student.batch import Batch
from student.config import NEEDS_REFERENCE, LossSettings, TeacherLossSettings
from student.item_batches import ItemBatch
from student.models.causal import Positions
from student.models.layers import Featured, among_all, network_scope
from student.variants import Loss


class Scores(NamedTuple):
    """A network's predictions for a batch.

    Attributes:
        log_probs: at each example's target [n, levels, V].
        targets: the targets' codewords, as numbers in V [n, levels].
        allowed: the codewords of the softmax, bool [n, levels, V]; None: all V.
        candidates: M of each candidate [..., k]; None where nothing is ranked.
        present: which candidates exist [..., k].
        teacher: the teacher's log P(v|S) of the candidates [..., k]; None for pseudo-IDs.
        rank_weights: of the ranked lists [...].
    """

    log_probs: Tensor
    targets: Tensor
    allowed: Tensor | None = None
    candidates: Tensor | None = None
    present: Tensor | None = None
    teacher: Tensor | None = None
    rank_weights: Tensor | None = None


Settings = TypeVar("Settings", bound=TeacherLossSettings)


def anneal(settings: Settings, done: float) -> Settings:
    """Return the settings at a share of the training: temperature and α go evenly from their start to their end.

    Args:
        settings: as configured.
        done: share of the training that is done, from 0 to 1.
    """
    ends = {name: getattr(settings, f"{name}_end", None) for name in ("temperature", "alpha")}
    changed = {name: (1 - done) * getattr(settings, name) + done * end for name, end in ends.items() if end is not None}
    return replace(settings, **changed) if changed else settings


def batch_loss(
    model,
    loss: Loss,
    batch: Batch,
    codes: Tensor,
    with_ranking: bool,
    settings: LossSettings,
    trie: Trie | None = None,
    reference=None,
) -> Tensor:
    """Compute the loss of a phase: equation (8), (9), (11) or (14), or one of the first three plus γ · (14), as (16).

    Args:
        model: the network, wrapped or not.
        loss: of the phase.
        batch: one-pass or not.
        codes: codewords of all items [n_items, levels].
        with_ranking: whether the ranking loss has joined (`rank_from`).
        settings: parameters of the losses.
        trie: of the codes, on their device; for the scope "trie".
        reference: the frozen network of the ranking losses dpo and s_dpo.

    Returns:
        This process's part of the global batch's loss.
    """
    batch, with_ranking = batch.to(codes.device), with_ranking and batch.rank_total > 0
    history = torch.where((batch.sequences != PAD)[..., None], codes[batch.sequences.clamp(min=0)], PAD)
    score = score_one_pass if batch.one_pass else score_prefixes
    inputs = history, batch, codes, with_ranking, settings, trie
    scores = score(model, *inputs)
    value = 0 * scores.log_probs.sum()  # every process needs a graph, even with nothing to train
    if loss.generative is not None:
        example_losses = generative_loss(loss, scores, batch, settings)
        value = value + (example_losses * batch.weights).sum() / max(batch.total, 1e-9)
    network = getattr(model, "module", model)  # DDP's and DeepSpeed's wrappers hold it so
    guesses = network.take_features() if isinstance(network, Featured) else None
    if guesses is not None:
        value = value + feature_loss(guesses, batch, settings)
    if scores.candidates is not None:
        reference_scores = None
        if settings.list_loss in NEEDS_REFERENCE:
            with torch.no_grad():
                reference_scores = score(reference, *inputs).candidates
        length = codes.shape[1] ** settings.eta
        ranking = ranking_loss(scores.candidates, scores.present, settings, scores.teacher, reference_scores, length)
        ranked = (ranking * scores.rank_weights).sum() / max(batch.rank_total, 1e-9)
        value = value + (settings.gamma if loss.generative else 1.0) * ranked
    return value


def generative_loss(loss: Loss, scores: Scores, batch: Batch, settings: LossSettings) -> Tensor:
    """Compute equation (8), (9) or (11) for each example, with the loss of its prefixes where it has a weight [n]."""
    value = codeword_loss(loss, scores, batch, settings)
    if settings.prefix_weight and not batch.on_policy:
        value = value + settings.prefix_weight * losses.prefix(scores.log_probs, scores.targets, settings.prefix_focus)
    return value


def codeword_loss(loss: Loss, scores: Scores, batch: Batch, settings: LossSettings) -> Tensor:
    """Compute equation (8), (9) or (11) for each example [n]."""
    if loss.generative == "nll":
        return losses.nll(scores.log_probs, scores.targets)
    if loss.generative == "smooth":
        return losses.smooth(scores.log_probs, scores.targets, settings.xi, scores.allowed)
    teacher = batch.log_probs
    if scores.allowed is not None:
        teacher = teacher.float().clamp(min=EXCLUDED).masked_fill(~scores.allowed, -torch.inf)
    if teacher.shape[-1] != scores.log_probs.shape[-1]:  # labels per level, a student over all levels' codewords
        teacher = spread_levels(teacher)
    hard = losses.nll(scores.log_probs, scores.targets)
    if settings.divergence == "forward_kl":
        soft = losses.distill(scores.log_probs, teacher, settings.temperature, scores.targets, settings.alpha)
    else:
        options = settings.divergence, scores.log_probs, teacher, settings.temperature, settings.beta, settings.skew
        soft = (1 - settings.alpha) * divergence(*options) + settings.alpha * hard
    return torch.where(batch.label_invalid, hard, soft)


def feature_loss(guesses: Tensor, batch: Batch, settings: LossSettings) -> Tensor:
    """Compute this process's part of the loss of the teacher's states; 0 with a graph where the batch has none."""
    if batch.states is None:
        return 0 * guesses.sum()
    weights = batch.weights * ~batch.label_invalid
    return settings.feature_weight * (losses.features(guesses, batch.states) * weights).sum() / max(batch.total, 1e-9)


def ranking_loss(
    scores: Tensor,
    present: Tensor | None,
    settings: TeacherLossSettings,
    teacher: Tensor | None = None,
    reference: Tensor | None = None,
    length: float = 1.0,
) -> Tensor:
    """Compute the ranking loss that the settings name, equation (14) or another, for each list.

    Args and result as for `list_loss`.
    """
    parameters = settings.margin, settings.list_scale, settings.temperature, length, settings.kl_weight
    return list_loss(settings.list_loss, scores, present, teacher, reference, *parameters)


def score_prefixes(
    model,
    history: Tensor,
    batch: Batch,
    codes: Tensor,
    with_ranking: bool,
    settings: LossSettings,
    trie: Trie | None = None,
) -> Scores:
    """Score each example by itself: its target, and the candidates if they are ranked.

    Args:
        model, batch, codes, with_ranking, settings, trie: as in `batch_loss`.
        history: codewords of the sequences, PAD for none [rows, items, levels].
    """
    if with_ranking:
        codewords, present = ranked_codewords(batch, codes)
    else:
        codewords, present = codes[batch.targets[:, None]], None
    log_probs, allowed = over_children(model(history, codewords, network_scope(settings.scope)), codewords, trie)
    numbers = codeword_numbers(codewords, log_probs, settings.scope)
    candidates = losses.sequence_score(log_probs, numbers, settings.eta) if with_ranking else None
    allowed = None if allowed is None else allowed[:, 0]
    ranked = candidates, present, batch.candidate_scores, batch.rank_weights
    return Scores(log_probs[:, 0], numbers[:, 0], allowed, *ranked)


def score_one_pass(
    model,
    history: Tensor,
    batch: Batch,
    codes: Tensor,
    with_ranking: bool,
    settings: LossSettings,
    trie: Trie | None = None,
) -> Scores:
    """Score the target at every position of each window, and the candidates that are ranked.

    The reference candidate is scored from the window itself, so it is not repeated. Arguments as in `score_prefixes`.
    """
    examples, scope = batch.ranked_examples if with_ranking else None, network_scope(settings.scope)
    if examples is None:
        log_probs, _ = model(history, None, scope, Positions(batch.rows, batch.places))
        log_probs, allowed = over_children(log_probs, codes[batch.targets], trie)
        return Scores(log_probs, codeword_numbers(codes[batch.targets], log_probs, settings.scope), allowed)
    ranked, examples = examples >= 0, examples.clamp(min=0)
    codewords, present = (of_example[examples] for of_example in ranked_codewords(batch, codes))  # [rows, groups, k, …]
    codewords, places = codewords[:, :, 1:], torch.where(ranked, batch.places[examples], PAD)
    siblings = None if trie is None else trie.allowed(codewords)
    log_probs, others = model(history, codewords, scope, Positions(batch.rows, batch.places, places, siblings))
    log_probs, allowed = over_children(log_probs, codes[batch.targets], trie)
    targets = codeword_numbers(codes[batch.targets], log_probs, settings.scope)
    reference = log_probs.gather(-1, targets[..., None]).squeeze(-1)[examples]
    candidates = losses.mean_score(torch.cat([reference[:, :, None], others], dim=2), settings.eta)
    teacher = None if batch.candidate_scores is None else batch.candidate_scores[examples]
    return Scores(log_probs, targets, allowed, candidates, present, teacher, batch.rank_weights[examples] * ranked)


def over_children(log_probs: Tensor, codewords: Tensor, trie: Trie | None) -> tuple[Tensor, Tensor | None]:
    """Renormalise log-probabilities [..., levels, V] over the children of each prefix of the IDs [..., levels].

    Returns:
        Log-probabilities, and which codewords they are of [..., levels, V]; without a trie, as they were and None.
    """
    if trie is None:
        return log_probs, None
    allowed = trie.allowed(codewords)
    return renormalise(log_probs, allowed), allowed


def ranked_codewords(batch: Batch, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codewords of the candidates [n, k, levels], and which exist [n, k]."""
    if batch.pseudo_ids is not None:
        return batch.pseudo_ids, torch.ones_like(batch.pseudo_ids[..., 0], dtype=torch.bool)
    return codes[batch.candidates.clamp(min=0)], batch.candidates >= 0


def codeword_numbers(codes: Tensor, log_probs: Tensor, scope: str) -> Tensor:
    """Number codewords [..., levels] as the log-probabilities [..., V] do: within the level, or among all levels'."""
    return among_all(codes, log_probs.shape[-1] // codes.shape[-1]) if scope == "all" else codes


def spread_levels(teacher: Tensor) -> Tensor:
    """Spread log-probabilities of each level [n, levels, V] over all levels' codewords [n, levels, levels · V].

    Codewords of other levels get −∞.
    """
    batch, levels, size = teacher.shape
    wide = teacher.new_full((batch, levels, levels, size), -torch.inf)
    diagonal = torch.arange(levels, device=teacher.device)
    wide[:, diagonal, diagonal] = teacher
    return wide.flatten(2)


def item_loss(model, loss: str, batch: ItemBatch, device: torch.device, settings: TeacherLossSettings) -> Tensor:
    """Compute the cross-entropy to the next items, plus γ times the losses over the teacher's candidates.

    Args:
        model: a network over items, wrapped or not.
        loss: ce; or with a teacher list (cross-entropy to the candidates), rank (equation 14), list+rank.
        batch: its candidates may be absent (PAD) where the teacher labelled nothing.
        device: of the network.
        settings: parameters of the losses.

    Returns:
        This process's part of the global batch's loss: the first mean is over all targets, the second over the
        labelled ones.
    """
    batch = batch.to(device)
    log_probs = model(batch.inputs, batch.places)
    value = -log_probs.gather(1, batch.targets[:, None]).sum() / batch.count
    if loss != "ce" and batch.labelled:
        present = batch.candidates != PAD
        chosen = log_probs.gather(1, batch.candidates.clamp(min=0))
        teacher_losses = torch.zeros(len(chosen), device=device)
        if "rank" in loss:
            teacher_losses = teacher_losses + ranking_loss(chosen, present, settings, batch.scores)
        if "list" in loss:
            scores = (batch.scores / settings.temperature).masked_fill(~present, -1e9)
            teacher_losses = teacher_losses - (torch.softmax(scores, dim=-1) * present * chosen).sum(-1)
        value = value + settings.gamma * (teacher_losses * present.any(1)).sum() / batch.labelled
    return batch.weight * value


def denoising_loss(model, batch: ItemBatch, device: torch.device) -> Tensor:
    """Compute this process's part of DreamRec's loss: the mean over the global batch's targets of the squared error.

    Args:
        model: a DreamRec, wrapped or not.
        batch: its candidates are not read.
        device: of the network.
    """
    batch = batch.to(device)
    return batch.weight * model(batch.inputs, batch.places, batch.targets).sum() / batch.count
