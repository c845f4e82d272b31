"""Find and open what is evaluated: artifacts of a run, and the names of its systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from distill.baselines import names
from distill.data.demo import simulator
from distill.evaluation.config import BaselineSettings, InputSettings, ProtocolSettings
from distill.evaluation.ranked_lists import ASKED
from distill.runtime import artifacts, ray_actors
from distill.runtime.artifacts import Artifact
from distill.runtime.commands import command_for
from distill.runtime.config import suggest
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.semantic_ids.embeddings import read_embeddings, text_vectors
from distill.semantic_ids.ids import SemanticIDs
from distill.semantic_ids.lineage import adopt_teacher

RANKED_OVER = ("dataset", "semantic_ids", "embeddings")  # inputs that systems of one table always share
PAPER_ORDER = ("tiger", "smooth", "distill", "dtr", "dwr")


@dataclass(frozen=True)
class Inputs:
    """The artifacts of an evaluation, and the names of the systems that learn nothing (`distill.baselines.names`)."""

    dataset: Artifact
    semantic_ids: Artifact | None
    embeddings: Artifact | None
    teacher: Artifact | None
    item_models: list[Artifact]
    students: list[Artifact]
    not_learned: list[str] = field(default_factory=list)

    def artifacts(self) -> list[Artifact]:
        """All artifacts that are read."""
        optional = [artifact for artifact in (self.semantic_ids, self.teacher, self.embeddings) if artifact]
        return [self.dataset, *self.students, *self.item_models, *optional]

    def learned(self) -> list[Artifact]:
        """Trained systems in the order of their rows: those taught by the teacher come after it, since their lists are
        compared with its list."""
        untaught = [model for model in self.item_models if model.kind == "teacher" or model.config.get("loss") == "ce"]
        taught = [model for model in self.item_models if model not in untaught]
        return [*untaught, *([self.teacher] if self.teacher else []), *taught, *self.students]

    def load_tables(self, n_items: int) -> tuple[SemanticIDs | None, np.ndarray, np.ndarray | None]:
        """Load the semantic IDs, the vectors for diversity and the text vectors, as far as there are any.

        Raises:
            UserError: a table has another length than the catalogue.
        """
        ids = SemanticIDs.load(self.semantic_ids.folder, n_items) if self.semantic_ids else None
        texts = text_vectors(self.embeddings, n_items) if self.embeddings else None
        return ids, item_vectors(self.embeddings, ids, n_items), texts

    def with_absolute_folders(self) -> Inputs:
        """Return the same artifacts by folders that hold in any working directory."""

        def absolute(artifact: Artifact) -> Artifact:
            return replace(artifact, folder=artifact.folder.absolute())

        return Inputs(
            absolute(self.dataset),
            absolute(self.semantic_ids) if self.semantic_ids else None,
            absolute(self.embeddings) if self.embeddings else None,
            absolute(self.teacher) if self.teacher else None,
            [absolute(model) for model in self.item_models],
            [absolute(student) for student in self.students],
            self.not_learned,
        )

    def with_different_labels(self) -> Inputs:
        """Return the same artifacts without the inputs that they were only trained on, which may then differ."""

        def forget(artifact: Artifact) -> Artifact:
            kept = {name: value for name, value in artifact.inputs.items() if name.split("/")[0] in RANKED_OVER}
            return replace(artifact, inputs=kept)

        return replace(
            self,
            teacher=forget(self.teacher) if self.teacher else None,
            item_models=[forget(model) for model in self.item_models],
            students=[forget(student) for student in self.students],
        )

    def check_on_node(self, with_embeddings: bool = False) -> None:
        """Refuse a machine where what trained systems need is missing, or another than where it was opened.

        Args:
            with_embeddings: whether texts are read there as well.

        Raises:
            UserError: names the folder.
        """
        optional = [self.semantic_ids, self.embeddings if with_embeddings else None]
        for artifact in [self.dataset, *(artifact for artifact in optional if artifact), *self.learned()]:
            ray_actors.check_artifact(artifacts.read(artifact.folder, artifact.kind), artifact.fingerprint)


def system_name(learned: Artifact) -> str:
    """Name the row of a trained system."""
    return "teacher" if learned.kind == "teacher" and not writes_titles(learned) else learned.folder.name


def system_kind(learned: Artifact) -> str:
    """Tell the kind of a trained system (`System.kind`)."""
    return "ranker" if writes_titles(learned) else learned.kind


def find_inputs(config: InputSettings, baselines: BaselineSettings, protocol: ProtocolSettings) -> Inputs:
    """Open the artifacts of a run, and choose the systems.

    Raises:
        UserError: a missing or unfinished artifact, or an unknown name in `systems`.
    """
    dataset = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    folder = config.students or config.run / "students"
    students, item_models = folders_in(folder), folders_in(config.baselines or config.run / "baselines")
    if config.students and not students:
        raise UserError(f"No student in {folder}. Make one with: {command_for('student', folder / 'tiger')}")
    teacher = config.teacher or config.run / "teacher"
    has_teacher = bool(config.teacher) or teacher.exists()
    table = config.embeddings or config.run / "embeddings"
    embeddings = artifacts.read(table, "embeddings") if config.embeddings or table.exists() else None

    check_names([*students, *item_models])
    not_learned = available_baselines(dataset, embeddings, baselines, protocol)
    learned = [path.name for path in (*students, *item_models)] + ["teacher"] * has_teacher
    for name in config.systems or ():
        if name not in (*learned, *not_learned):
            raise UserError(f"Unknown system {name!r} in {folder}. {suggest(name, [*learned, *not_learned])}")
    wanted = config.systems or learned
    students, item_models = ([path for path in paths if path.name in wanted] for paths in (students, item_models))
    has_teacher &= "teacher" in wanted

    baseline_artifacts = [read_baseline(path) for path in item_models]
    student_artifacts = [artifacts.read(path, "student") for path in students]
    if protocol.split == "valid":
        baseline_artifacts, student_artifacts = (
            _without_validation(found, config.systems) for found in (baseline_artifacts, student_artifacts)
        )
    teacher_artifact = artifacts.read(teacher, "teacher") if has_teacher else None
    if teacher_artifact and writes_titles(teacher_artifact):
        raise UserError(
            f"The teacher at {teacher} writes titles; it is evaluated as a baseline. Move it to "
            f"{config.baselines or config.run / 'baselines'}/bigrec."
        )

    codes = config.semantic_ids or config.run / "semantic_ids"
    # only teachers and students need semantic IDs, and diversity without embeddings
    teachers = has_teacher or any(artifact.kind == "teacher" for artifact in baseline_artifacts)
    needed = bool(student_artifacts) or teachers or embeddings is None or bool(config.semantic_ids)
    ids = artifacts.read(codes, "semantic_ids") if needed or codes.exists() else None
    inputs = Inputs(
        dataset,
        ids,
        embeddings,
        adopt_teacher(teacher_artifact, ids) if teacher_artifact and ids else teacher_artifact,
        baseline_artifacts,
        student_artifacts,
        [name for name in not_learned if name in wanted] or not_learned,
    )
    apart = inputs.with_different_labels()
    if config.different_labels:
        return apart
    try:
        artifacts.check_agreement(*inputs.artifacts())
    except UserError as error:
        artifacts.check_agreement(*apart.artifacts())  # raises where more than labels differs
        raise UserError(f"{error} To rank them side by side all the same, add --different_labels true.") from None
    return inputs


def _without_validation(learned: Sequence[Artifact], asked: Sequence[str] | None) -> list[Artifact]:
    """Leave out systems whose memory has counted the validation targets, on which they would be evaluated.

    Raises:
        UserError: one of them was asked for by name.
    """
    kept = []
    for artifact in learned:
        folder = artifact.folder
        if not artifact.config.get("with_validation"):
            kept.append(artifact)
        elif folder.name in (asked or ()):
            raise UserError(f"{folder} has counted the validation targets; evaluate it with --split test.")
        else:
            log.info(f"{folder.name} is left out: its memory has counted the validation targets")
    return kept


def read_baseline(folder: Path) -> Artifact:
    """Open a trained baseline: a network over items, or a teacher that writes titles.

    Raises:
        UserError: neither of them.
    """
    artifact = artifacts.read_any(folder, ("baseline", "teacher"))
    if artifact.kind == "teacher" and not writes_titles(artifact):
        raise UserError(f"{folder} is a teacher that is asked for IDs, not a baseline; name it with --teacher.")
    # the role tells it from the run's teacher and from others of its kind
    return replace(artifact, role=folder.name) if artifact.kind == "teacher" else artifact


def writes_titles(artifact: Artifact) -> bool:
    """Tell whether an artifact is a teacher that writes titles (BIGRec) or textual IDs (IDGenRec), not semantic IDs."""
    return artifact.kind == "teacher" and artifact.config.get("prompt") == "titles"


def check_names(folders: Sequence[Path]) -> None:
    """Refuse folders of trained systems that are named like another row of the table, which they would replace.

    Raises:
        UserError: a baseline without training, the teacher or its mixtures, a column of `lists.parquet`, or two alike.
    """
    clashes = {name: "names a row of its own" for name in (*names.NOT_LEARNED, "teacher", *names.TEACHER_MIXTURES)}
    clashes |= {name: "names a column of lists.parquet" for name in ASKED}
    for folder in folders:
        if folder.name in clashes:
            raise UserError(
                f"{folder} cannot be evaluated under its name: {folder.name!r} {clashes[folder.name]}. Rename "
                "the folder."
            )
        clashes[folder.name] = f"is {folder} too"


def available_baselines(
    dataset: Artifact, embeddings: Artifact | None, baselines: BaselineSettings, protocol: ProtocolSettings
) -> list[str]:
    """Names of the systems that learn nothing and can be evaluated, in the order of their rows."""
    available = {
        names.ORACLE: (dataset.folder / simulator.FILE).is_file(),
        names.TRANSITIONS_VALID: protocol.split == "test",  # otherwise its targets would have been counted
        names.GRAPH: baselines.graph,
        names.CONTENT: baselines.content and embeddings is not None,
        names.COUNTER_CONTENT: baselines.content and embeddings is not None,
    }
    return [name for name in names.NOT_LEARNED if available.get(name, True)]


def folders_in(folder: Path) -> list[Path]:
    """Artifacts below a folder: first those of the paper's table in its order, then the others by name."""
    paths = [path for path in Path(folder).glob("*") if artifacts.is_finished_folder(path)]
    last = len(PAPER_ORDER)
    order = {name: place for place, name in enumerate(PAPER_ORDER)}
    return sorted(paths, key=lambda path: (order.get(path.name, last), path.name))


def item_vectors(embeddings: Artifact | None, ids: SemanticIDs | None, n_items: int) -> np.ndarray:
    """Read the embeddings for diversity [n_items, dim]; without embeddings, the codes, one-hot.

    Args:
        embeddings: artifact, or None.
        ids: semantic IDs; needed without embeddings.
        n_items: catalogue size.

    Raises:
        UserError: the table has another length than the catalogue.
    """
    if embeddings is None:
        return np.eye(ids.codebook_size)[ids.codes].reshape(n_items, -1)
    return read_embeddings(embeddings, n_items)
