"""Students and item models as the evaluation asks them (`distill.evaluation.systems.System`)."""

from __future__ import annotations

import numpy as np
from torch import nn

from distill.baselines.counting import Transitions
from distill.data.dataset import PAD, Dataset, Examples
from distill.evaluation.systems import Ranked, System, batches
from distill.ranking import scores_of
from distill.runtime.artifacts import Artifact
from student.item_recommender import ItemRecommender
from student.recommender import Recommender
from student.transition_memory import DISCOUNTS, Candidates, TransitionMemory, best_share, candidates


def count_parameters(*models: nn.Module | None) -> int:
    """Number of parameters of all models."""
    return sum(parameter.numel() for model in models if model is not None for parameter in model.parameters())


class StudentSystem:
    """A student that searches semantic IDs."""

    kind = "student"

    def __init__(self, artifact: Artifact, device: str):
        self.name = artifact.folder.name
        self.student = Recommender.from_pretrained(artifact.folder, device)
        self.parameters = count_parameters(self.student.model, self.student.ranker)

    def rank(
        self, histories: np.ndarray, beam_width: int, exclude_bought: bool, constrained: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `System.rank`."""
        return self.student.rank_items(histories, beam_width, exclude_bought, constrained)

    def score_all(self, histories: np.ndarray, exclude_bought: bool) -> np.ndarray:
        """As `System.score_all`."""
        return self.student.score_items(histories, exclude_bought)

    def score_candidates(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """As `System.score_candidates`."""
        return self.student.score_candidates(histories, items)

    def ranking_scores(self, histories: np.ndarray, items: np.ndarray, exclude_bought: bool) -> np.ndarray:
        """As `System.ranking_scores`."""
        return self.student.ranking_scores(histories, items, exclude_bought)


class ItemModelSystem:
    """A SASRec or GRU4Rec, which scores all items directly."""

    kind = "baseline"

    def __init__(self, artifact: Artifact, device: str):
        self.name = artifact.folder.name
        self.recommender = ItemRecommender.from_pretrained(artifact.folder, device)
        self.parameters = count_parameters(self.recommender.model)

    def rank(
        self, histories: np.ndarray, beam_width: int, exclude_bought: bool, constrained: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `System.rank`; there is nothing to constrain."""
        return self.recommender.rank_items(histories, beam_width, exclude_bought)

    def score_all(self, histories: np.ndarray, exclude_bought: bool) -> np.ndarray:
        """As `System.score_all`."""
        return self.recommender.score_items(histories)

    def score_candidates(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """As `System.score_candidates`."""
        return scores_of(self.recommender.score_items(histories), items)

    def ranking_scores(self, histories: np.ndarray, items: np.ndarray, exclude_bought: bool) -> np.ndarray:
        """As `System.ranking_scores`."""
        return self.score_candidates(histories, items)


class MemoryMixture:
    """Mix a system's beams with a transition memory (`distill.evaluation.systems.TransitionMixture`).

    Args:
        dataset: its training part is counted.
        transitions: the counter, whose settings are taken over.
        top: how many of the counter's items join the beams.
        batch_size: users at once.
    """

    def __init__(self, dataset: Dataset, transitions: Transitions, top: int, batch_size: int = 256):
        self.batch_size = batch_size
        self.memory = TransitionMemory.of(dataset, transitions.settings, top=top)
        self.weight, self.discount = 0.5, 0.0

    def tune(self, system: System, beams: Ranked, examples: Examples, exclude_bought: bool) -> str:
        """Choose weight and discount on validation examples; returns them in words."""
        proposals = self._proposals(system, beams, examples, exclude_bought, "the counter's share")
        (self.weight, self.discount), _ = best_share(proposals, examples.targets, discounts=DISCOUNTS)
        return f"the counter's share is {self.weight}, the discount {self.discount}"

    def rank(
        self, system: System, beams: Ranked, examples: Examples, beam_width: int, exclude_bought: bool
    ) -> np.ndarray:
        """Rank beams and the counter's items by the mixture [users, up to beam_width]."""
        proposals = self._proposals(system, beams, examples, exclude_bought, f"{system.name}+transitions")
        return proposals.ranked(self.weight, beam_width, self.discount)[0]

    def _proposals(
        self, system: System, beams: Ranked, examples: Examples, exclude_bought: bool, title: str
    ) -> Candidates:
        """The beams and the counter's top items, with the probabilities of both [users, beam width + top]."""
        items = np.full((len(examples), beams.items.shape[1] + self.memory.top), PAD)
        log_probs, counter = np.full(items.shape, -np.inf), np.zeros(items.shape)
        for rows, histories in batches(examples, self.batch_size, title):
            part = candidates(
                (beams.items[rows], beams.scores[rows]), system.score_candidates, self.memory, histories, exclude_bought
            )
            for whole, values in zip((items, log_probs, counter), part[:3], strict=True):
                whole[rows, : values.shape[1]] = values
        return Candidates(items, log_probs, counter, self.memory.familiarity[items])
