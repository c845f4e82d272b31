"""The teacher as the evaluation asks it (`distill.evaluation.systems.System`)."""

from __future__ import annotations

import numpy as np

from distill.data.dataset import Dataset
from distill.evaluation.inputs import writes_titles
from distill.evaluation.systems import System
from distill.runtime.artifacts import Artifact
from distill.runtime.models import count_parameters
from distill.semantic_ids.ids import SemanticIDs
from teacher.engines.hf import HFEngine
from teacher.title_validation import title_ranker


def load_teacher_system(
    artifact: Artifact, dataset: Dataset, ids: SemanticIDs | None, device: str, dtype: str = "float32"
) -> System:
    """Load a teacher of semantic IDs, or one that writes titles.

    Args:
        artifact: the teacher.
        dataset: of the evaluation.
        ids: semantic IDs of its items; None: only for a teacher that writes titles.
        device: cpu or cuda.
        dtype: of the weights.
    """
    kind = TitleSystem if writes_titles(artifact) else TeacherSystem
    return kind(artifact, dataset, ids, device, dtype)


class TeacherSystem:
    """A teacher behind the Hugging Face engine."""

    kind, name, needs_trie = "teacher", "teacher", False

    def __init__(self, artifact: Artifact, dataset: Dataset, ids: SemanticIDs, device: str, dtype: str = "float32"):
        self.engine = HFEngine.load(artifact.folder, dataset, ids, device, dtype)
        self.parameters = count_parameters(self.engine.model)

    def rank(
        self, histories: np.ndarray, beam_width: int, exclude_bought: bool, constrained: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `System.rank`."""
        return self.engine.beams(histories, beam_width, exclude_bought, constrained)

    def search_whole_vocabulary(self, histories: np.ndarray, beam_width: int) -> np.ndarray | None:
        """As `System.search_whole_vocabulary`."""
        return self.engine.search_whole_vocabulary(histories, beam_width)

    def score_all(self, histories: np.ndarray, exclude_bought: bool) -> np.ndarray:
        """As `System.score_all`."""
        return self.engine.score_items(histories)

    def score_candidates(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """As `System.score_candidates`."""
        return self.engine.score_candidates(histories, items)

    def ranking_scores(self, histories: np.ndarray, items: np.ndarray, exclude_bought: bool) -> np.ndarray:
        """As `System.ranking_scores`."""
        return self.engine.score_candidates(histories, items)


class TitleSystem:
    """A teacher that writes titles (BIGRec) or textual IDs (IDGenRec), and ranks items without semantic IDs."""

    kind, needs_trie = "ranker", False

    def __init__(self, artifact: Artifact, dataset: Dataset, ids: SemanticIDs, device: str, dtype: str = "float32"):
        self.name = artifact.folder.name
        engine = HFEngine.load(artifact.folder, dataset, ids, device, dtype, writes_titles=True)
        self.ranker, self.parameters = title_ranker(engine), count_parameters(engine.model)

    def rank(
        self, histories: np.ndarray, beam_width: int, exclude_bought: bool, constrained: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `System.rank`; there is nothing to constrain."""
        return self.ranker.rank(histories, beam_width, exclude_bought)

    def search_whole_vocabulary(self, histories: np.ndarray, beam_width: int) -> np.ndarray | None:
        """As `System.search_whole_vocabulary`; there are no invalid semantic IDs to count."""
        return None

    def score_all(self, histories: np.ndarray, exclude_bought: bool) -> np.ndarray:
        """As `System.score_all`; scores of titles are no log-probabilities."""
        return self.ranker.score_all(histories)

    def score_candidates(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """As `System.score_candidates`; scores of titles are no log-probabilities."""
        return self.ranker.score_candidates(histories, items)

    def ranking_scores(self, histories: np.ndarray, items: np.ndarray, exclude_bought: bool) -> np.ndarray:
        """As `System.ranking_scores`."""
        return self.ranker.score_candidates(histories, items)
