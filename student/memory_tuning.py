"""Choose the weights of a mixture with memories on the validation split."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from distill.baselines.content import Content
from distill.baselines.counting import Transitions
from distill.baselines.mixture import TEMPERATURES
from distill.data.dataset import PAD, Dataset
from distill.metrics import MISSED, hit_ranks, ndcg
from distill.runtime.logs import log
from student.content_memory import ContentMemory
from student.memories import WithMemories
from student.memory_config import MemorySettings
from student.memory_mixture import Candidates, MixtureWeights, model_share
from student.transition_memory import TransitionMemory

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
DISCOUNTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
CONTENT_WEIGHTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)

Student = TypeVar("Student", bound=WithMemories)


def add_memories(
    student: Student, dataset: Dataset, texts: np.ndarray | None, settings: MemorySettings, scratch: Path | None = None
) -> tuple[Student, dict[str, Any]]:
    """Build the memories of a student and choose their weights.

    Args:
        student: memories that it has are left out.
        dataset: counted; its validation part decides.
        texts: text embeddings [n_items, dim]; None: no content memory.
        settings: what to mix in, and what is fixed.
        scratch: an existing folder for counts that do not fit into memory (`TransitionMemory.of`).

    Returns:
        The student with its memories, and the choice for a manifest (`describe_choice`).
    """
    student, exclude_bought = student.with_transition_memory(None), student.facts["exclude_bought"]
    counting = settings.transitions or Transitions.tune(dataset, exclude_bought)[0].settings
    memory, content = TransitionMemory.of(dataset, counting, scratch=scratch, top=settings.top), None
    if texts is not None:
        content = ContentMemory.of(Content.tune(dataset, texts, exclude_bought), top=settings.top)
    weights, values = choose_weights(student, memory, content, dataset, settings)
    if settings.with_validation:
        memory = TransitionMemory.of(dataset, counting, True, scratch, top=settings.top)
    student = student.with_transition_memory(replace(memory, weight=weights.weight, discount=weights.discount))
    if content:
        content = replace(content, weight=weights.content_weight, temperature=weights.temperature)
        student = student.with_content_memory(content)
    return student, describe_choice(weights, values)


def choose_weights(
    student: WithMemories,
    memory: TransitionMemory,
    content: ContentMemory | None,
    dataset: Dataset,
    settings: MemorySettings,
) -> tuple[MixtureWeights, dict[MixtureWeights, float]]:
    """Choose the weights of a student's memories by NDCG@10 on validation examples.

    Args:
        student: without memories.
        memory: the counts.
        content: the text embeddings; None: without them.
        dataset: has the validation examples.
        settings: weights that are fixed, beams and users.

    Returns:
        The weights, and NDCG@10 of all that were tried; nothing is tried if all are fixed and there is no content
        memory, whose temperature is always chosen.
    """
    weight, discount, content_weight = settings.weight, settings.discount, settings.content_weight
    if content is None and weight is not None and discount is not None:
        return MixtureWeights(weight, discount), {}
    longest = max(student.max_history, memory.settings.last, content.settings.last if content else 0)
    examples = dataset.examples("valid", longest)
    examples = examples.take(np.random.default_rng(0).permutation(len(examples))[: settings.valid_users])
    mixture = student.with_transition_memory(memory).with_content_memory(content)
    proposals = mixture.candidates(examples.histories, settings.width, student.facts["exclude_bought"], TEMPERATURES)
    best, values = best_weights(
        proposals,
        examples.targets,
        WEIGHTS if weight is None else (weight,),
        DISCOUNTS if discount is None else (discount,),
        CONTENT_WEIGHTS if content_weight is None else (content_weight,),
    )
    student_alone, counter_alone = (
        f"{values[choice]:.4f}" if (choice := MixtureWeights(share)) in values else "not tried" for share in (0.0, 1.0)
    )
    log.info(
        f"{best.in_words()}: NDCG@10 {values[best]:.4f} on {len(examples)} validation examples; "
        f"student alone {student_alone}, counter alone {counter_alone}"
    )
    return best, values


def describe_choice(weights: MixtureWeights, values: dict[MixtureWeights, float]) -> dict[str, Any]:
    """Describe what was chosen and tried, for a manifest.

    Without content, all that was tried is listed; with content, of each pair of shares the best: the grid is large.
    """
    with_content = any(tried.content_weight for tried in (weights, *values))
    keys = MixtureWeights._fields if with_content else ("weight", "discount")

    def facts(choice: MixtureWeights) -> dict[str, float]:
        return {key: getattr(choice, key) for key in keys}

    best: dict[tuple[float, ...], MixtureWeights] = {}
    for tried, value in values.items():
        key = (tried.weight, tried.content_weight) if tried.content_weight else tried
        if key not in best or value > values[best[key]]:
            best[key] = tried
    return facts(weights) | {"valid": [facts(tried) | {"ndcg@10": values[tried]} for tried in best.values()]}


def best_weights(
    proposals: Candidates,
    targets: np.ndarray,
    weights: Sequence[float] = WEIGHTS,
    discounts: Sequence[float] = DISCOUNTS,
    content_weights: Sequence[float] = CONTENT_WEIGHTS,
    k: int = 10,
) -> tuple[MixtureWeights, dict[MixtureWeights, float]]:
    """Choose the weights of a mixture by NDCG@k.

    Args:
        proposals: for validation users, never for test users; their temperatures are tried too.
        targets: item numbers [users].
        weights, discounts, content_weights: the grid; pairs of shares above 1 are left out. Without a content memory
            only the content weight 0 is tried.
        k: cut-off.

    Returns:
        The best weights, of equals those with the smallest content weight, weight and discount; and NDCG@k of all.
    """
    values: dict[MixtureWeights, float] = {}
    if proposals.content is None or 0.0 in content_weights:
        for weight, discount in itertools.product(weights, discounts):
            choice = MixtureWeights(weight, discount)
            lists, _ = proposals.ranked(choice, k)
            values[choice] = float(ndcg(hit_ranks(lists, targets), k).mean())
    if proposals.content is not None:
        shares = [(w, c) for w in weights for c in content_weights if c > 0 and w + c <= 1 + 1e-9]
        values |= _values_with_content(proposals, targets, shares, discounts, k)

    def preference(choice: MixtureWeights) -> tuple[float, ...]:
        return values[choice], -choice.content_weight, -choice.weight, -choice.discount

    return max(values, key=preference), values


def _values_with_content(
    proposals: Candidates,
    targets: np.ndarray,
    shares: Sequence[tuple[float, float]],
    discounts: Sequence[float],
    k: int,
) -> dict[MixtureWeights, float]:
    """NDCG@k of all choices with content, from the users whose target is proposed: the others add nothing.

    The rank is counted instead of sorted, with probabilities instead of logarithms: there are thousands of choices.
    """
    matches = proposals.items == targets[:, None]
    users = np.flatnonzero(matches.any(1))
    place = matches[users].argmax(1)[:, None]
    is_before = np.arange(proposals.items.shape[1]) < place
    is_item = proposals.items[users] != PAD
    probabilities, counter = np.exp(proposals.log_probs[users]), proposals.counter[users]
    factors = [np.exp(-discount * proposals.familiarity[users]) * is_item for discount in discounts]
    values = {}
    for temperature, similar in proposals.content.items():
        similar = similar[users]
        for weight, content_weight in shares:
            share = model_share(weight, content_weight)
            mixture = share * probabilities + weight * counter + content_weight * similar
            for discount, factor in zip(discounts, factors, strict=True):
                scores = mixture * factor
                target = np.take_along_axis(scores, place, axis=1)
                ranks = ((scores > target) | ((scores == target) & is_before)).sum(1)
                ranks = np.where(target[:, 0] > 0, ranks, MISSED)
                choice = MixtureWeights(weight, discount, content_weight, temperature)
                values[choice] = float(ndcg(ranks, k).sum() / max(len(targets), 1))
    return values
