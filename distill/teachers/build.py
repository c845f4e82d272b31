"""Build the labeller of an export from its mix of teachers and its folds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from distill.data.dataset import Dataset
from distill.decoding.trie import Trie
from distill.labels.labeller import Labeller
from distill.semantic_ids.ids import SemanticIDs
from distill.teachers.content import ContentTeacher
from distill.teachers.cross_fitting import FoldedLabeller
from distill.teachers.heuristics import DistanceTeacher, StatisticsTeacher
from distill.teachers.item_teacher import ItemLabeller, ItemTeacher
from distill.teachers.mixture import MixtureLabeller
from distill.teachers.transitions import TransitionTeacher


def build_labeller(
    mix: dict[str, float],
    folds: int,
    dataset: Dataset,
    ids: SemanticIDs,
    exclude_bought: bool,
    language_model: Callable[[int | None], Labeller],
    item_model: Callable[[int | None], ItemTeacher] | None = None,
    texts: np.ndarray | None = None,
) -> Labeller:
    """Build one teacher or a weighted mixture, cross-fitted where there are folds.

    Args:
        mix: weights above zero by name: llm, transitions, distance, statistics, item_model, content.
        folds: number of folds, 0 for none.
        dataset: its training part is counted; settings are tuned on its validation part.
        ids: the semantic IDs.
        exclude_bought: whether items of the history will not be recommended.
        language_model: returns the language model's labeller that was tuned without the given fold; for None, the one
            that was tuned on all users.
        item_model: as `language_model`, for the network over items; None where it is not in the mix.
        texts: vectors of the items' texts [n_items, dim]; None where content is not in the mix.
    """
    trie = Trie.build(ids.codes, ids.codebook_size)
    transitions = TransitionTeacher.tune(dataset, exclude_bought) if "transitions" in mix else None
    content = ContentTeacher.tune(dataset, texts, exclude_bought) if texts is not None else None

    def build_teacher(name: str, data: Dataset, fold: int | None) -> Labeller:
        if name == "llm":
            return language_model(fold)
        if name == "transitions":
            assert transitions is not None
            return ItemLabeller(transitions.on(data), trie, exclude_bought)
        if name == "item_model":
            assert item_model is not None
            return ItemLabeller(item_model(fold), trie, exclude_bought)
        if name == "content":
            assert content is not None
            return ItemLabeller(content, trie, exclude_bought)
        teacher = DistanceTeacher(ids.codes) if name == "distance" else StatisticsTeacher(data)
        return ItemLabeller(teacher, trie, exclude_bought)

    def build_mixture(fold: int | None) -> Labeller:
        data = dataset if fold is None else dataset.without_fold(folds, fold)
        parts = [build_teacher(name, data, fold) for name in mix]
        return parts[0] if len(parts) == 1 else MixtureLabeller(parts, list(mix.values()), ids.codes)

    return FoldedLabeller([build_mixture(fold) for fold in range(folds)]) if folds else build_mixture(None)
