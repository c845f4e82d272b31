"""Add a transition memory to a trained student, without training: `dwr` becomes `dwr+memory`.

    python scripts/add_memory.py --student runs/demo/students/dwr
    python scripts/add_memory.py --student runs/demo/students/dwr --content true

The second command adds the similarity of item texts too: `dwr` becomes `dwr+memory+content`. The settings of counter
and content, their shares and the discount of items that are bought often are chosen on the validation split.
`Recommender.from_pretrained` loads the new student with its memory, and `scripts/evaluate.py` gives it a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveInt

from distill.baselines.content import Content
from distill.baselines.counting import Transitions, TransitionSettings
from distill.data.dataset import Dataset
from distill.evaluation.inputs import text_vectors
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
    embeddings: Path | None = None
    """Embeddings whose text part `content` reads (default: RUN/embeddings)."""
    output: Path | None = None
    """Folder of the new student (default: STUDENT+memory, with `content` STUDENT+memory+content)."""
    transitions: TransitionSettings | None = None
    """How to count; none: the best of a grid for the counter alone, on the validation split."""
    weight: ClosedUnitInterval | None = None
    """The counter's share, 0 to 1; none: the best of a grid by NDCG@10 on the validation split."""
    discount: NonNegativeFloat | None = None
    """β, the discount of items that are bought often; none: the best of a grid, with the share."""
    content: bool = False
    """Add a content memory too: the text embeddings of all items, whose similarity with the history is mixed in."""
    content_weight: ClosedUnitInterval | None = None
    """The content's share, 0 to 1; none: the best of a grid, with the counter's."""
    top: PositiveInt = 50
    """How many items of the counter, and of the content, join the beams."""
    width: PositiveInt = 20
    """Beams when the share is chosen; at least 10."""
    valid_users: PositiveInt = 3000
    """Validation examples at most when the share is chosen."""
    with_validation: bool = False
    """Once the share is chosen, count the validation part too."""
    device: str = field(default="cpu", metadata={"identity": False})
    """cpu or cuda."""


def main(config: Config) -> None:
    """Count, choose the shares, save the student with its memories."""
    check(config)
    source = artifacts.read(config.student or config.run / "students/dwr", "student")
    data = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    inputs = [source, data]
    if config.content:
        inputs.append(artifacts.read(config.embeddings or config.run / "embeddings", "embeddings"))
    suffix = "+memory+content" if config.content else "+memory"
    output = config.output or source.folder.with_name(source.folder.name + suffix)
    job = ArtifactJob("student", config, output, inputs, overwrite=config.overwrite)
    if job.is_finished():
        return

    # imported late: they load torch
    from student.content_memory import ContentMemory
    from student.memory_tuning import choose_weights, describe_choice
    from student.recommender import Recommender
    from student.transition_memory import TransitionMemory

    dataset = Dataset.load(data.folder)
    student = Recommender.from_pretrained(source.folder, config.device)
    exclude_bought = student.facts["exclude_bought"]
    settings = config.transitions or Transitions.tune(dataset, exclude_bought)[0].settings
    memory, content = TransitionMemory.of(dataset, settings, top=config.top), None
    if config.content:
        vectors = text_vectors(inputs[-1], dataset.n_items)
        content = ContentMemory.of(Content.tune(dataset, vectors, exclude_bought), top=config.top)
    fixed = config.weight, config.discount, config.content_weight
    weights, values = choose_weights(student, memory, dataset, content, *fixed, config.width, config.valid_users)
    if config.with_validation:
        memory = TransitionMemory.of(dataset, settings, True, top=config.top)
    student = student.with_transition_memory(replace(memory, weight=weights.weight, discount=weights.discount))
    if content:
        content = replace(content, weight=weights.content_weight, temperature=weights.temperature)
        student = student.with_content_memory(content)
    job.facts = describe_choice(weights, values)
    with job.write() as folder:
        student.save_pretrained(folder)


def check(config: Config) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UserError: too few beams for NDCG@10, settings of the content without it, shares above 1 in all.
    """
    if config.width < 10:
        raise UserError(f"width: NDCG@10 needs at least 10 beams, got {config.width}.")
    if not config.content and (config.content_weight is not None or config.embeddings is not None):
        name = "content_weight" if config.content_weight is not None else "embeddings"
        raise UserError(f"{name} has no effect without --content true.")
    shares = (config.weight or 0.0) + (config.content_weight or 0.0)
    if shares > 1:
        raise UserError(f"weight and content_weight add up to {shares:g}; together they may be at most 1.")


if __name__ == "__main__":
    run(main, Config)
