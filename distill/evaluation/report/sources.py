"""What a report reads: the evaluations of one or more runs, the data set, and the artifacts of the main run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.evaluation.report.files import read_json
from distill.evaluation.report.rows import read_rows
from distill.runtime import artifacts
from distill.runtime.artifacts import MANIFEST, Artifact, check_agreement
from distill.runtime.commands import COMMANDS
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class Sources:
    """The artifacts of a report."""

    evaluation: Artifact
    """Of the main run."""
    other_evaluations: list[Artifact]
    """Of runs with other seeds."""
    dataset: Artifact
    """What was evaluated on."""
    artifacts: dict[str, Artifact]
    """All finished artifacts of the main run by name, in the order of the pipeline; the evaluation is the last."""

    @property
    def evaluations(self) -> list[Artifact]:
        """All of them, the main run's first."""
        return [self.evaluation, *self.other_evaluations]

    def identity(self) -> dict[str, Any]:
        """Return what decides the report's content beside its config and the main evaluation."""
        return {
            "other seeds": [other.fingerprint for other in self.other_evaluations],
            "artifacts of the run": {
                name: [artifact.fingerprint, artifact.manifest["created"]] for name, artifact in self.artifacts.items()
            },
        }


def read_sources(run: Path, evaluation_folder: Path | None = None, other_runs: Sequence[Path] = ()) -> Sources:
    """Find and check the artifacts of a report.

    Args:
        run: root of the main run.
        evaluation_folder: of the main run (default: RUN/evaluation).
        other_runs: roots of runs that differ in their seeds alone.

    Raises:
        UserError: a missing or damaged artifact, or runs that cannot be averaged.
    """
    evaluation = artifacts.read(evaluation_folder or run / "evaluation", "evaluation")
    others = [artifacts.read(folder / "evaluation", "evaluation") for folder in other_runs]
    check_seeds(evaluation, others)
    dataset = artifacts.read(Path(evaluation.config.get("dataset") or run / "dataset"), "dataset")
    check_agreement(dataset, evaluation)
    return Sources(evaluation, others, dataset, find_artifacts(run, dataset, evaluation))


def check_seeds(evaluation: Artifact, others: Sequence[Artifact]) -> None:
    """Refuse runs that cannot be averaged with the main one.

    Raises:
        UserError: another data set, or a run named twice, which would make the spread look smaller than it is.
    """
    expected = evaluation.inputs.get("dataset")
    seen = {evaluation.folder.resolve()}
    for other in others:
        dataset = other.inputs.get("dataset")
        if dataset != expected:
            raise UserError(
                f"{other.folder} was made from another data set ({dataset}) than {evaluation.folder} ({expected}); "
                "only runs of the same data can be averaged."
            )
        if other.folder.resolve() in seen:
            raise UserError(f"{other.folder} is named twice; --seeds names the other runs, each once.")
        seen.add(other.folder.resolve())


def find_artifacts(root: Path, dataset: Artifact, evaluation: Artifact) -> dict[str, Artifact]:
    """Find the finished artifacts of a run.

    Returns:
        Artifacts by their folder relative to the run, in the order of the pipeline; systems of one kind in the order
        of the table; the evaluation last.
    """
    artifacts_by_name = {"dataset": dataset}
    order = list(COMMANDS)
    folders = [path.parent for under in ("", "baselines/", "students/") for path in root.glob(f"{under}*/{MANIFEST}")]
    for folder in sorted(
        folder for folder in folders if artifacts.is_finished_folder(folder) and folder.suffix != ".old"
    ):
        manifest = read_json(folder / MANIFEST, None)
        kind = manifest.get("kind") if isinstance(manifest, dict) else None
        if kind in order and kind not in ("dataset", "evaluation", "report"):
            artifacts_by_name[folder.relative_to(root).as_posix()] = artifacts.read(folder, kind)
    in_table = [f"{parent}/{row['system']}" for row in read_rows(evaluation) for parent in ("baselines", "students")]

    def position(name: str) -> tuple[int, int, str]:
        place = in_table.index(name) if name in in_table else len(in_table)
        return order.index(artifacts_by_name[name].kind), place, name

    ordered = {name: artifacts_by_name[name] for name in sorted(artifacts_by_name, key=position)}
    return ordered | {"evaluation": evaluation}
