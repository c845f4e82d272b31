"""Choose the share of a transition memory in a student's recommendations on the validation split."""

from __future__ import annotations

import numpy as np

from distill.data.dataset import Dataset
from distill.runtime.logs import log
from student.recommender import Recommender
from student.transition_memory import DISCOUNTS, WEIGHTS, TransitionMemory, best_share


def choose_share(
    student: Recommender,
    memory: TransitionMemory,
    dataset: Dataset,
    weight: float | None = None,
    discount: float | None = None,
    width: int = 20,
    max_users: int = 3000,
) -> tuple[float, float, dict[tuple[float, float], float]]:
    """Choose weight and discount of a transition memory by NDCG@10 on validation examples.

    Args:
        student: without a memory.
        memory: the counts.
        dataset: has the validation examples.
        weight, discount: fixed values; None: the best of a grid.
        width: beams.
        max_users: validation examples at most.

    Returns:
        Weight, discount, and NDCG@10 of each (weight, discount) that was tried; nothing is tried if both are fixed.
    """
    if weight is not None and discount is not None:
        return weight, discount, {}
    longest = max(student.facts["max_history"], memory.settings.last)
    examples = dataset.examples("valid", longest)
    examples = examples.take(np.random.default_rng(0).permutation(len(examples))[:max_users])
    mixture = student.with_transition_memory(memory)
    proposals = mixture.candidates(examples.histories, width, student.facts["exclude_bought"])
    weights = WEIGHTS if weight is None else (weight,)
    discounts = DISCOUNTS if discount is None else (discount,)
    (weight, discount), values = best_share(proposals, examples.targets, weights, discounts)
    student_alone, counter_alone = (
        f"{values[share, 0.0]:.4f}" if (share, 0.0) in values else "not tried" for share in (0.0, 1.0)
    )
    log.info(
        f"weight {weight}, discount {discount}: NDCG@10 {values[weight, discount]:.4f} on {len(examples)} "
        f"validation examples; student alone {student_alone}, counter alone {counter_alone}"
    )
    return weight, discount, values
