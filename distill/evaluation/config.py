"""Settings of an evaluation, in groups; `scripts/evaluate.py` joins them to one command."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from distill.baselines.counting import TransitionSettings
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class InputSettings:
    """What is evaluated"""

    run: Path = Path("runs/demo")
    """Folder of the run; inputs and output default to their names inside it."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    semantic_ids: Path | None = None
    """Semantic IDs artifact (default: RUN/semantic_ids)."""
    embeddings: Path | None = None
    """Embeddings for diversity and for the baselines that read texts (default: RUN/embeddings where it exists,
    otherwise diversity is that of the codes, one-hot)."""
    teacher: Path | None = None
    """Teacher artifact (default: RUN/teacher where it exists)."""
    students: Path | None = None
    """Folder of student artifacts (default: RUN/students)."""
    baselines: Path | None = None
    """Folder of trained baselines, which may be empty (default: RUN/baselines)."""
    lists: list[Path] | None = None
    """Ranked lists of systems outside this project, a row each, named by the file: parquet with the columns user_id,
    items (item ids, best first) and, if wanted, scores."""
    systems: list[str] | None = None
    """Names of the systems to evaluate: students, trained baselines, `teacher`, and those that learn nothing. Where
    none of the latter is named, all of them are evaluated (default: all systems there are)."""
    different_labels: bool = field(default=False, metadata={"identity": False})
    """Trained systems may have learned from different labels and teachers; only their data set, semantic IDs and
    embeddings must be the same. Otherwise such a difference is refused, because one of them is usually out of date."""


@dataclass(frozen=True)
class ProtocolSettings:
    """How all systems are ranked and measured"""

    split: Literal["valid", "test"] = "test"
    """Which held-out part."""
    users: PositiveInt | None = None
    """Only the first N examples; under leave-one-out, users."""
    width: PositiveInt = 20
    """Beam width (paper: 20)."""
    cutoffs: list[PositiveInt] = field(default_factory=lambda: [1, 5, 10, 20])
    """K of recall, NDCG and diversity; none larger than the beam width. The largest is the length of the lists."""
    exclude_bought: bool | None = None
    """Never recommend items of the history, in any row (default: where the training part never has an item twice)."""
    batch_size: PositiveInt = field(default=256, metadata={"identity": False})
    """Users at once."""


@dataclass(frozen=True)
class BaselineSettings:
    """Baselines that learn nothing"""

    transitions: TransitionSettings | None = None
    """Settings of the counting baseline; none: the best of a grid on the validation split."""
    graph: bool = True
    """A row for the walk over the transition graph ranked by similarity; its settings are chosen on validation."""
    content: bool = True
    """Rows for the similarity of texts, alone, mixed with the counting baseline, and both with the teacher, where
    embeddings exist; their settings are chosen on validation."""


@dataclass(frozen=True)
class MeasureSettings:
    """Further measures of teacher and students"""

    widths: list[PositiveInt] = field(default_factory=list)
    """Beam widths at which diversity and invalid share are measured as well (the paper's Figures 1 and 3)."""
    width_users: PositiveInt = 200
    """Users for that."""
    exact_users: NonNegativeInt = 50
    """Users for whom all items are scored exactly, to see how much of their true first ten the beams miss (teachers
    only where the catalogue is small); 0 leaves it out."""
    kl_users: PositiveInt = 300
    """Users whose exact item distributions are compared with the truth (demo data only)."""
    cold_users: NonNegativeInt = 300
    """Users with a cold target, an item of no training sequence, for whom all cold items are ranked."""


@dataclass(frozen=True)
class TeacherMixtureSettings:
    """The rows teacher+transitions and teacher+counter+content"""

    mixture_users: NonNegativeInt = 1000
    """Validation examples on which the shares in `teacher+transitions` and `teacher+counter+content` are chosen; 0
    leaves these rows out."""
    mixture_top: PositiveInt = 50
    """How many items of the counter, and of the content, join the teacher's beams there."""


@dataclass(frozen=True)
class EvaluationSettings(ProtocolSettings, BaselineSettings, MeasureSettings, TeacherMixtureSettings):
    """All settings that decide the figures"""


def check(protocol: ProtocolSettings) -> None:
    """Refuse cutoffs that the beams cannot fill.

    Raises:
        UserError: no cutoffs, or lists longer than the beams are wide.
    """
    if not protocol.cutoffs:
        raise UserError("cutoffs is empty; name at least one K, such as --cutoffs 10.")
    if max(protocol.cutoffs) > protocol.width:
        raise UserError(
            f"cutoffs asks for lists of {max(protocol.cutoffs)}, but the beams are {protocol.width} wide. Choose a "
            "larger --width or smaller --cutoffs."
        )
