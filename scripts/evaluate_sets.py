"""Evaluate trained systems with sets of later items as truth: all, warm and cold items, and five popularity groups.

python scripts/evaluate_sets.py --run runs/demo --systems [sasrec,setrec] --output runs/demo-sets
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jsonargparse.typing import PositiveInt

from distill.baselines.item_scorer import longest_history
from distill.data.dataset import Dataset
from distill.evaluation.config import BaselineSettings, InputSettings, ProtocolSettings
from distill.evaluation.inputs import find_inputs
from distill.evaluation.set_truth import SetExamples, measure_sets
from distill.runtime.artifacts import write_json
from distill.runtime.config import run
from distill.runtime.devices import check_device
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.runtime.new_folder import check_free, new_folder


@dataclass(frozen=True)
class Config(InputSettings):
    """Evaluate with sets as truth: python scripts/evaluate_sets.py [--field value ...]."""

    split: Literal["valid", "test"] = "test"
    """Which held-out part; with prepare_data.py --split global_cut a user may have several items in it."""
    cutoffs: list[PositiveInt] = field(default_factory=lambda: [5, 10, 20])
    """K of recall and NDCG."""
    exclude_bought: bool = False
    """Never recommend items of the history (the paper of SETRec recommends them)."""
    output: Path | None = None
    """A new folder for metrics.json (default: RUN/evaluation-sets)."""
    device: str = "cpu"
    """cpu or cuda."""


def main(config: Config) -> None:
    """Rank all items for every user by exact scores, log recall and NDCG, write `metrics.json`."""
    check_device(config.device)
    if not config.cutoffs:
        raise UserError("--cutoffs is empty; name at least one K.")
    output = config.output or config.run / "evaluation-sets"
    check_free(output)
    inputs = find_inputs(config, BaselineSettings(), ProtocolSettings(split=config.split))
    learned = [artifact for artifact in inputs.learned() if artifact.kind != "teacher"]
    if not learned:
        raise UserError(f"{config.run} has no student and no network over items to evaluate; see docs/students.md.")

    from student.systems import ItemModelSystem, StudentSystem  # with torch: slow to import

    dataset = Dataset.load(inputs.dataset.folder)
    examples = SetExamples.of(dataset, config.split, longest_history(dataset))
    counts = np.bincount(dataset.training_sequences()[0], minlength=dataset.n_items)
    rows = []
    for artifact in learned:
        system = (ItemModelSystem if artifact.kind == "baseline" else StudentSystem)(artifact, config.device)
        score = partial(system.score_all, exclude_bought=config.exclude_bought)
        figures = measure_sets(score, examples, counts, config.cutoffs, config.exclude_bought)
        rows.append({"system": system.name, "split": config.split, "exclude_bought": config.exclude_bought} | figures)
        for part in ("all", "warm", "cold"):
            values = [f"{key} {value:.4f}" for key, value in figures[part].items() if isinstance(value, float)]
            log.info(f"{system.name}, {part}: {figures[part]['users']:,} users {', '.join(values)}")
    with new_folder(output) as folder:
        write_json(folder / "metrics.json", rows)
    log.info(f"wrote {output / 'metrics.json'}")


if __name__ == "__main__":
    run(main, Config)
