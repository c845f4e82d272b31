"""Which systems an evaluation with sets as truth ranks, and the scores of those that learn nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from distill.data.dataset import Dataset
from distill.evaluation.baseline_systems import Baselines, ScoredBaseline, choose_floor
from distill.evaluation.evaluate import SMALL_CATALOGUE
from distill.evaluation.inputs import Inputs, writes_titles
from distill.runtime.artifacts import Artifact
from distill.runtime.errors import UserError


class NamedScores(NamedTuple):
    """A system as it is measured.

    Attributes:
        name: of its row.
        note: its settings in words.
        score: histories [users, length] -> scores of all items [users, n_items].
    """

    name: str
    note: str
    score: Callable[[np.ndarray], np.ndarray]


def is_feasible(artifact: Artifact, dataset: Dataset, requested: Sequence[str]) -> bool:
    """Tell whether a trained system is evaluated: a teacher of semantic IDs not, where the catalogue is large.

    Args:
        artifact: of the system.
        dataset: of the evaluation.
        requested: names of systems that were asked for.

    Raises:
        UserError: it is not, and was asked for by its name.
    """
    if artifact.kind != "teacher" or writes_titles(artifact) or dataset.n_items <= SMALL_CATALOGUE:
        return True
    if "teacher" in requested:
        raise UserError(
            f"A teacher's exact scores are computed for at most {SMALL_CATALOGUE:,} items, and "
            f"{dataset.artifact.folder} has {dataset.n_items:,}. Leave `teacher` out of --systems."
        )
    return False


def score_baselines(inputs: Inputs, dataset: Dataset, exclude_bought: bool) -> tuple[str | None, list[NamedScores]]:
    """Tune the systems that learn nothing on validation, and choose the floor among them there.

    Returns:
        The floor's name, and those that score items; a score of 0, which is never recommended, becomes −∞.
    """
    _, vectors, texts = inputs.load_tables(dataset.n_items)
    baselines = Baselines(dataset, vectors, texts, exclude_bought).build(inputs.not_learned)
    floor, _ = choose_floor(baselines, dataset, exclude_bought)

    def score(model: ScoredBaseline, histories: np.ndarray) -> np.ndarray:
        scores = model.scorer.scores(histories)
        return np.where(scores > 0, scores, -np.inf)

    models = [(each, each.model) for each in baselines if isinstance(each.model, ScoredBaseline)]
    return floor, [NamedScores(each.name, each.note, partial(score, model)) for each, model in models]
