"""The similarity of texts as a teacher: nothing is trained, and items that nobody bought get their probability too."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from distill.baselines.content import Content
from distill.baselines.item_scorer import validation_examples
from distill.data.dataset import Dataset
from distill.teachers.item_teacher import CHUNK, ScoreTeacher

TEMPERATURES = (0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24)


class ContentTeacher(ScoreTeacher):
    """The baseline `Content` as a distribution: softmax(cosine / τ) over all items. Implements `ItemTeacher`.

    Args:
        content: the baseline.
        temperature: τ.
    """

    def __init__(self, content: Content, temperature: float):
        super().__init__(content.cosines, "content", temperature)
        self.content = content

    @staticmethod
    def tune(dataset: Dataset, vectors: np.ndarray, exclude_bought: bool, max_users: int = 2000) -> ContentTeacher:
        """Choose how histories are read by validation NDCG@10, then τ by the likelihood of validation targets.

        Args:
            dataset: its validation part decides.
            vectors: of the items' texts [n_items, dim].
            exclude_bought: whether items of the history will not be recommended.
            max_users: of the validation part, at most, for τ.
        """
        content = Content.tune(dataset, vectors, exclude_bought)
        examples = validation_examples(dataset, max_users)
        teachers = [ContentTeacher(content, temperature) for temperature in TEMPERATURES]
        likelihood = np.zeros(len(teachers))
        for start in range(0, len(examples), CHUNK):
            part = examples.take(slice(start, start + CHUNK))
            for number, teacher in enumerate(teachers):
                chances = teacher.probabilities(part, exclude_bought)[np.arange(len(part)), part.targets]
                likelihood[number] += np.log(chances).sum()
        return teachers[int(likelihood.argmax())]

    def facts(self) -> dict[str, Any]:
        """Return the settings and the temperature."""
        return {**super().facts(), **asdict(self.content.settings)}
