"""Cross-fitting: each fold of users is labelled by a teacher that never saw it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distill.data.dataset import Examples
from distill.data.splits import assign_folds
from distill.labels.labeller import Labeller, LabelRequest, Labels, Progress, joined


class FoldedLabeller:
    """Cross-fitting: examples of fold i are labelled by the i-th teacher, who never saw their users' training part."""

    def __init__(self, labellers: Sequence[Labeller]):
        self.labellers = list(labellers)

    def label(self, examples: Examples, ask: LabelRequest, progress: Progress) -> Labels:
        """As `labelling.Labeller.label`."""
        found = [(rows, labeller.label(examples.take(rows), ask, progress)) for rows, labeller in self._folds(examples)]
        return joined([labels for _, labels in found], np.argsort(np.concatenate([rows for rows, _ in found])))

    def log_prob(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """As `labelling.Labeller.log_prob`."""
        out = np.empty(items.shape)
        for rows, labeller in self._folds(examples):
            out[rows] = labeller.log_prob(examples.take(rows), items[rows])
        return out

    def facts(self) -> dict[str, Any]:
        """The first fold's facts, and how many folds there are."""
        return self.labellers[0].facts() | {"folds": len(self.labellers)}

    def _folds(self, examples: Examples):
        fold = assign_folds(examples.users, len(self.labellers))
        rows = [np.flatnonzero(fold == number) for number in range(len(self.labellers))]
        return [pair for pair in zip(rows, self.labellers, strict=True) if len(pair[0])]
