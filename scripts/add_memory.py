"""Add a transition memory to a trained student, without training: `dwr` becomes `dwr+memory`.

    python scripts/add_memory.py --student runs/demo/students/dwr

The counter's settings, its share and the discount of items that are bought often are chosen on the validation split.
`Recommender.from_pretrained` loads the new student with its memory, and `scripts/evaluate.py` gives it a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveInt

from distill.baselines.counting import Transitions, TransitionSettings
from distill.data.dataset import Dataset
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import JobSettings, run
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class Config(JobSettings):
    """Add a memory to a student: python scripts/add_memory.py --student FOLDER [--field value ...]."""

    run: Path = Path("runs/demo")
    """Folder of the run; the data set defaults to its name inside it."""
    student: Path | None = None
    """Student artifact (default: RUN/students/dwr)."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    output: Path | None = None
    """Folder of the new student (default: STUDENT+memory)."""
    transitions: TransitionSettings | None = None
    """How to count; none: the best of a grid for the counter alone, on the validation split."""
    weight: ClosedUnitInterval | None = None
    """The counter's share, 0 to 1; none: the best of a grid by NDCG@10 on the validation split."""
    discount: NonNegativeFloat | None = None
    """β, the discount of items that are bought often; none: the best of a grid, with the share."""
    top: PositiveInt = 50
    """How many of the counter's items join the beams."""
    width: PositiveInt = 20
    """Beams when the share is chosen; at least 10."""
    valid_users: PositiveInt = 3000
    """Validation examples at most when the share is chosen."""
    with_validation: bool = False
    """Once the share is chosen, count the validation part too."""
    device: str = field(default="cpu", metadata={"identity": False})
    """cpu or cuda."""


def main(config: Config) -> None:
    """Count, choose the share, save the student with its memory."""
    if config.width < 10:
        raise UserError(f"width: NDCG@10 needs at least 10 beams, got {config.width}.")
    source = artifacts.read(config.student or config.run / "students/dwr", "student")
    data = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    output = config.output or source.folder.with_name(source.folder.name + "+memory")
    job = ArtifactJob("student", config, output, [source, data], overwrite=config.overwrite)
    if job.is_finished():
        return

    # imported late: they load torch
    from student.memory_tuning import choose_share
    from student.recommender import Recommender
    from student.transition_memory import TransitionMemory

    dataset = Dataset.load(data.folder)
    student = Recommender.from_pretrained(source.folder, config.device)
    settings = config.transitions or Transitions.tune(dataset, student.facts["exclude_bought"])[0].settings
    memory = TransitionMemory.of(dataset, settings, top=config.top)
    weight, discount, values = choose_share(
        student, memory, dataset, config.weight, config.discount, config.width, config.valid_users
    )
    if config.with_validation:
        memory = TransitionMemory.of(dataset, settings, True, top=config.top)
    memory = replace(memory, weight=weight, discount=discount)
    valid = [{"weight": pair[0], "discount": pair[1], "ndcg@10": value} for pair, value in values.items()]
    job.facts = {"weight": weight, "discount": discount, "valid": valid}
    with job.write() as folder:
        student.with_transition_memory(memory).save_pretrained(folder)


if __name__ == "__main__":
    run(main, Config)
