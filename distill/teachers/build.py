"""From `--mix llm=0.7,transitions=0.3 --folds 5` to the teacher that answers."""

from __future__ import annotations

from collections.abc import Callable

from distill.data.dataset import Dataset
from distill.decoding.trie import Trie
from distill.labels.labeller import Labeller
from distill.semantic_ids.ids import SemanticIDs
from distill.teachers.cross_fitting import FoldedLabeller
from distill.teachers.heuristics import DistanceTeacher, StatisticsTeacher
from distill.teachers.item_teacher import ItemLabeller
from distill.teachers.mixture import MixtureLabeller
from distill.teachers.transitions import TransitionTeacher


def build_labeller(
    mix: dict[str, float],
    folds: int,
    dataset: Dataset,
    ids: SemanticIDs,
    hide: bool,
    llm: Callable[[int | None], Labeller],
) -> Labeller:
    """The teacher that `mix` describes: one, or several by weights; cross-fitted where there are folds.

    Args:
        mix: weights above zero by name: llm, transitions, distance, statistics.
        folds: how many folds, 0 for none.
        dataset: what is counted; settings are tuned on its validation part.
        ids: the semantic IDs.
        hide: items of the history will not be recommended.
        llm: fold → the language model's labeller, tuned without that fold; None → the one tuned on all users.
    """
    trie = Trie.build(ids.codes, ids.codebook_size)
    tuned = TransitionTeacher.tune(dataset, hide) if "transitions" in mix else None

    def part(name: str, data: Dataset, fold: int | None) -> Labeller:
        if name == "llm":
            return llm(fold)
        if name == "transitions":
            return ItemLabeller(tuned.on(data), trie, hide)
        return ItemLabeller(DistanceTeacher(ids.codes) if name == "distance" else StatisticsTeacher(data), trie, hide)

    def whole(fold: int | None) -> Labeller:
        data = dataset if fold is None else dataset.without_fold(folds, fold)
        parts = [part(name, data, fold) for name in mix]
        return parts[0] if len(parts) == 1 else MixtureLabeller(parts, list(mix.values()), ids.codes)

    return FoldedLabeller([whole(fold) for fold in range(folds)]) if folds else whole(None)
