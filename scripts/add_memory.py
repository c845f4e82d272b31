"""Put a counter beside a trained student: `dwr` becomes `dwr+memory`, without training (in the manner of kNN-LM).

    python scripts/add_memory.py --student runs/demo/students/dwr

The counter's settings, its share and the discount of what is bought often are chosen on the validation split.
`Recommender.from_pretrained` then uses it, and `scripts/evaluate.py` shows the new student in a row of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from distill.baselines.counting import Transitions, TransitionSettings
from distill.data.dataset import Dataset
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import JobSettings, run
from distill.runtime.errors import UserError
from distill.runtime.logs import log


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
    """Where the new student goes (default: STUDENT+memory)."""
    transitions: TransitionSettings | None = None
    """How to count; none: the best of a grid for the counter alone, on the validation split."""
    weight: float | None = None
    """The counter's share, 0 to 1; none: the best of a grid by NDCG@10 on the validation split."""
    discount: float | None = None
    """β, how much less is thought of items that are bought often; none: the best of a grid, with the share."""
    top: int = 50
    """How many of the counter's items join the beams."""
    width: int = 20
    """Beams when the weight is chosen."""
    valid_users: int = 3000
    """Validation examples at most when the weight is chosen."""
    with_validation: bool = False
    """Once the weight is chosen, count the validation part too."""
    device: str = field(default="cpu", metadata={"identity": False})
    """cpu or cuda."""


def main(config: Config) -> None:
    """Choose, count, save."""
    if config.weight is not None and not 0 <= config.weight <= 1:
        raise UserError(f"weight: expected 0 to 1, got {config.weight}.")
    if config.discount is not None and config.discount < 0:
        raise UserError(f"discount: expected 0 or more, got {config.discount}.")
    if config.top < 1 or config.width < 10:
        raise UserError(f"Expected top of at least 1 and width of at least 10, got {config.top} and {config.width}.")
    source = artifacts.read(config.student or config.run / "students/dwr", "student")
    data = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    output = config.output or source.folder.with_name(source.folder.name + "+memory")
    stage = ArtifactJob("student", config, output, [source, data], overwrite=config.overwrite)
    if stage.is_finished():
        return

    # with torch: not needed where the work is finished
    from student.recommender import Recommender
    from student.transition_memory import DISCOUNTS, WEIGHTS, TransitionMemory, best_share

    dataset = Dataset.load(data.folder)
    student = Recommender.from_pretrained(source.folder, config.device)
    settings = config.transitions or Transitions.tune(dataset)[0].settings
    memory = TransitionMemory.of(dataset, settings, top=config.top)
    weight, discount, values = config.weight, config.discount, {}
    if weight is None or discount is None:
        examples = dataset.examples("valid", student.facts["max_history"])
        examples = examples.take(np.random.default_rng(0).permutation(len(examples))[: config.valid_users])
        both = student.with_memory(memory)
        found = both.candidates(examples.histories, config.width, student.facts["exclude_bought"])
        weights = WEIGHTS if weight is None else (weight,)
        (weight, discount), values = best_share(
            found, examples.targets, weights, DISCOUNTS if discount is None else (discount,)
        )
        alone, counter = ((f"{values[one, 0.0]:.4f}" if (one, 0.0) in values else "not tried") for one in (0.0, 1.0))
        log.info(f"weight {weight}, discount {discount}: NDCG@10 {values[weight, discount]:.4f} on {len(examples)} "
            f"validation examples; student alone {alone}, counter alone {counter}")  # fmt: skip
    if config.with_validation:
        memory = TransitionMemory.of(dataset, settings, True, top=config.top)
    memory = replace(memory, weight=weight, discount=discount)
    valid = [{"weight": pair[0], "discount": pair[1], "ndcg@10": value} for pair, value in values.items()]
    stage.facts = {"weight": weight, "discount": discount, "valid": valid}
    with stage.write() as folder:
        student.with_memory(memory).save_pretrained(folder)


if __name__ == "__main__":
    run(main, Config)
