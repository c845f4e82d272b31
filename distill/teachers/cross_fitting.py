"""Cross-fitting: the users of each fold are labelled by a teacher that has not seen them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.data.dataset import Examples
from distill.data.splits import assign_folds
from distill.labels.config import TeacherSettings
from distill.labels.labeller import Labeller, LabelRequest, Labels, Progress, concatenate_labels
from distill.runtime import artifacts
from distill.runtime.artifacts import Artifact
from distill.runtime.commands import command_for
from distill.runtime.errors import UserError


class FoldedLabeller:
    """Labels the examples of fold i by the i-th teacher, which has not seen the training part of their users.

    Implements `Labeller`.

    Args:
        labellers: one a fold.
    """

    def __init__(self, labellers: Sequence[Labeller]):
        self.labellers = list(labellers)

    def label(self, examples: Examples, request: LabelRequest, progress: Progress) -> Labels:
        """As `Labeller.label`."""
        rows_of_folds, labels = [], []
        for rows, labeller in self._folds(examples):
            rows_of_folds.append(rows)
            labels.append(labeller.label(examples.take(rows), request, progress))
        return concatenate_labels(labels, np.argsort(np.concatenate(rows_of_folds)))

    def log_prob(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """As `Labeller.log_prob`."""
        log_probs = np.empty(items.shape)
        for rows, labeller in self._folds(examples):
            log_probs[rows] = labeller.log_prob(examples.take(rows), items[rows])
        return log_probs

    def facts(self) -> dict[str, Any]:
        """Return the first fold's facts, and the number of folds."""
        return self.labellers[0].facts() | {"folds": len(self.labellers)}

    def _folds(self, examples: Examples) -> Iterator[tuple[np.ndarray, Labeller]]:
        """Yield the rows of each fold that has any, and its labeller."""
        fold_of_row = assign_folds(examples.users, len(self.labellers))
        for fold, labeller in enumerate(self.labellers):
            rows = np.flatnonzero(fold_of_row == fold)
            if len(rows):
                yield rows, labeller


def read_teachers(folder: Path, settings: TeacherSettings) -> list[Artifact]:
    """Open the teacher artifacts that label: none, one, or one a fold.

    Args:
        folder: the teacher's; fold i's has `-fold<i>` after this name.
        settings: mix and folds.

    Raises:
        UserError: a teacher is missing, or a fold's teacher was tuned on the users that it would label.
    """
    if "llm" not in settings.mix:
        return []
    if not settings.folds:
        return [artifacts.read(folder, "teacher")]
    return read_folds(folder, settings.folds, "teacher")


def read_folds(folder: Path, folds: int, kind: Literal["teacher", "baseline"]) -> list[Artifact]:
    """Open what was trained without each fold.

    Args:
        folder: fold i's has `-fold<i>` after this name.
        folds: how many.
        kind: language models, or networks over items.

    Raises:
        UserError: one is missing, or was trained on the users that it would label.
    """
    return [_read_fold(folder, folds, fold, kind) for fold in range(folds)]


def _read_fold(folder: Path, folds: int, fold: int, kind: Literal["teacher", "baseline"]) -> Artifact:
    path = folder.with_name(f"{folder.name}-fold{fold}")
    place = folder if folder.name == "teacher" else path  # RUN/teacher-fold<i> is the default under folds
    command = command_for(kind, place, f"--folds {folds} --fold {fold}")
    if not path.exists():
        raise UserError(f"No {kind} for fold {fold} at {path}. Make it with: {command}")
    artifact = artifacts.read(path, kind, command)
    trained = artifact.config.get("folds", 0), artifact.config.get("fold", 0)
    if trained != (folds, fold):
        raise UserError(f"{path} was trained with --folds {trained[0]} --fold {trained[1]}. Make it with: {command}")
    return artifact
