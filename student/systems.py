"""Students and item models as the evaluation asks them (`distill.evaluation.systems.System`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from distill.baselines import names
from distill.baselines.content import Content
from distill.baselines.counting import TransitionSettings
from distill.baselines.mixture import TEMPERATURES
from distill.data.dataset import Dataset, Examples
from distill.evaluation.cold import ScoreCandidates
from distill.evaluation.systems import Ranked, System, batches
from distill.runtime.artifacts import Artifact
from distill.runtime.logs import log
from distill.runtime.models import count_parameters
from student.config import Precision
from student.content_memory import ContentMemory
from student.item_recommender import ItemRecommender
from student.memory_mixture import Candidates, MixtureWeights, candidates, join_candidates, score_mixture
from student.memory_tuning import best_weights
from student.recommender import Recommender
from student.transition_memory import TransitionMemory

ALWAYS = ("items", "log_probs", "counter", "familiarity")  # what `Candidates` hold without a content memory


def load_student_system(artifact: Artifact, device: str, precision: Precision = "auto") -> System:
    """Load a student, or a trained network over items.

    Args:
        artifact: of kind student or baseline.
        device: cpu or cuda.
        precision: of a student's matrix products.
    """
    if artifact.kind == "baseline":
        return ItemModelSystem(artifact, device)
    return StudentSystem(artifact, device, precision)


class StudentSystem:
    """A student that searches semantic IDs."""

    kind = "student"

    def __init__(self, artifact: Artifact, device: str, precision: Precision = "auto"):
        self.name = artifact.folder.name
        self.student = Recommender.from_pretrained(artifact.folder, device, precision=precision)
        if self.student.precision != "float32":
            log.info(f"{self.name}: {self.student.precision} (--precision float32 turns it off)")
        self.parameters = count_parameters(self.student.model, self.student.ranker)
        self.needs_trie = self.student.facts["scope"] == "trie"

    def rank(
        self, histories: np.ndarray, beam_width: int, exclude_bought: bool, constrained: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `System.rank`."""
        return self.student.rank_items(histories, beam_width, exclude_bought, constrained)

    def search_whole_vocabulary(self, histories: np.ndarray, beam_width: int) -> np.ndarray | None:
        """As `System.search_whole_vocabulary`."""
        return self.student.search_whole_vocabulary(histories, beam_width)

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
    """A network over items such as SASRec, which scores all items directly."""

    kind = "baseline"
    needs_trie = False

    def __init__(self, artifact: Artifact, device: str):
        self.name = artifact.folder.name
        self.recommender = ItemRecommender.from_pretrained(artifact.folder, device)
        self.parameters = count_parameters(self.recommender.model)

    def rank(
        self, histories: np.ndarray, beam_width: int, exclude_bought: bool, constrained: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `System.rank`; there is nothing to constrain."""
        return self.recommender.rank_items(histories, beam_width, exclude_bought)

    def search_whole_vocabulary(self, histories: np.ndarray, beam_width: int) -> np.ndarray | None:
        """As `System.search_whole_vocabulary`; there is nothing to search."""
        return None

    def score_all(self, histories: np.ndarray, exclude_bought: bool) -> np.ndarray:
        """As `System.score_all`."""
        return self.recommender.score_items(histories, exclude_bought)

    def score_candidates(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """As `System.score_candidates`."""
        return self.recommender.score_candidates(histories, items)

    def ranking_scores(self, histories: np.ndarray, items: np.ndarray, exclude_bought: bool) -> np.ndarray:
        """As `System.ranking_scores`."""
        return self.recommender.ranking_scores(histories, items, exclude_bought)


class MemoryMixture:
    """Mix the beams of one system with memories that learn nothing (`distill.evaluation.systems.Mixture`).

    Args:
        dataset: its training part is counted.
        transitions: how to count.
        content: the similarity of texts; None: the mixture with the counter only.
        top: how many items of each memory join the beams.
        batch_size: users at once.
    """

    def __init__(
        self,
        dataset: Dataset,
        transitions: TransitionSettings,
        content: Content | None,
        top: int,
        batch_size: int = 256,
    ):
        self.batch_size = batch_size
        self.memory = TransitionMemory.of(dataset, transitions, top=top)
        self.content = ContentMemory.of(content, top=top) if content else None
        self.names = [names.TRANSITIONS] + [names.COUNTER_CONTENT] * bool(content)
        self.weights = {name: MixtureWeights(0.5) for name in self.names}
        self._log_probs: dict[tuple[bytes, bytes], np.ndarray] = {}

    def propose(
        self, system: System, beams: Ranked, examples: Examples, exclude_bought: bool, title: str
    ) -> Candidates:
        """As `Mixture.propose`."""
        parts = []
        for rows, histories in batches(examples, self.batch_size, title):
            lists = beams.items[rows], beams.scores[rows]
            part = candidates(
                lists, system.score_candidates, self.memory, histories, exclude_bought, self.content, TEMPERATURES
            )
            parts.append((rows, part))
        return join_candidates(parts)

    def tune(self, name: str, proposals: Candidates, targets: np.ndarray) -> str:
        """As `Mixture.tune`."""
        if name == names.TRANSITIONS:
            proposals = proposals.without_content()
        self.weights[name], _ = best_weights(proposals, targets)
        return self.weights[name].in_words()

    def rank(self, name: str, proposals: Candidates, beam_width: int) -> np.ndarray:
        """As `Mixture.rank`."""
        return proposals.ranked(self.weights[name], beam_width)[0]

    def pack(self, proposals: Candidates) -> dict[str, np.ndarray]:
        """As `Mixture.pack`."""
        arrays = {name: getattr(proposals, name) for name in ALWAYS}
        arrays["items"] = arrays["items"].astype(np.int32)
        if proposals.content is not None and proposals.by_content is not None:
            arrays["by_content"] = proposals.by_content
            arrays |= {f"content-{temperature}": array for temperature, array in proposals.content.items()}
        return arrays

    def unpack(self, parts: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray]]]) -> Candidates:
        """As `Mixture.unpack`."""
        opened = []
        for rows, arrays in parts:
            part = Candidates(*(arrays[name] for name in ALWAYS))
            part = part._replace(items=part.items.astype(np.int64))
            if "by_content" in arrays:
                content = {temperature: arrays[f"content-{temperature}"] for temperature in TEMPERATURES}
                part = part._replace(content=content, by_content=arrays["by_content"])
            opened.append((rows, part))
        return join_candidates(opened)

    def ranking_scores(
        self, name: str, score: ScoreCandidates, histories: np.ndarray, items: np.ndarray, exclude_bought: bool
    ) -> np.ndarray:
        """As `Mixture.ranking_scores`."""
        weights = self.weights[name]
        memory, content = replace(self.memory, weight=weights.weight, discount=weights.discount), None
        if weights.content_weight:
            content = replace(self.content, weight=weights.content_weight, temperature=weights.temperature)
        key = (histories.tobytes(), items.tobytes())  # all rows ask for the same
        if key not in self._log_probs:
            self._log_probs[key] = score(histories, items)
        return score_mixture(self._log_probs[key], memory, content, histories, items, exclude_bought)
