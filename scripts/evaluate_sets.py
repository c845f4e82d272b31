"""Evaluate systems with sets of later items as truth: all, warm and cold items, and five popularity groups.

python scripts/evaluate_sets.py --run runs/demo --systems [counter+content,sasrec,setrec] --output runs/demo-sets
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import PositiveInt

from distill.baselines import names
from distill.baselines.item_scorer import longest_history
from distill.data.dataset import Dataset
from distill.evaluation.config import BaselineSettings, InputSettings, ProtocolSettings
from distill.evaluation.inputs import Inputs, find_inputs
from distill.evaluation.set_systems import NamedScores, is_feasible, score_baselines
from distill.evaluation.set_truth import SetExamples, measure_sets
from distill.runtime.artifacts import Artifact, write_json
from distill.runtime.config import run
from distill.runtime.devices import check_device
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.runtime.new_folder import check_free, new_folder
from distill.semantic_ids.ids import SemanticIDs


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
    """Rank all items for every user by exact scores, log recall and NDCG, write `metrics.json`.

    Raises:
        UserError: nothing to evaluate, or a teacher of semantic IDs for a catalogue too large for its exact scores.
    """
    check_device(config.device)
    if not config.cutoffs:
        raise UserError("--cutoffs is empty; name at least one K.")
    output = config.output or config.run / "evaluation-sets"
    check_free(output)
    inputs = find_inputs(config, BaselineSettings(graph=False), ProtocolSettings(split=config.split))
    dataset = Dataset.load(inputs.dataset.folder)
    learned = [artifact for artifact in inputs.learned() if is_feasible(artifact, dataset, config.systems or [])]
    examples = SetExamples.of(dataset, config.split, longest_history(dataset))
    counts = dataset.count_purchases()
    facts: dict[str, Any] = {"split": config.split, "exclude_bought": config.exclude_bought}
    facts[names.FLOOR_KEY], not_learned = score_baselines(inputs, dataset, config.exclude_bought)
    log.info(f"the floor, by validation NDCG@10: {facts[names.FLOOR_KEY]}")
    rows = []
    for name, note, score in (*not_learned, *score_systems(learned, inputs, dataset, config)):
        figures = measure_sets(score, examples, counts, config.cutoffs, config.exclude_bought)
        rows.append({"system": name, "note": note} | facts | figures)
        for part in ("all", "warm", "cold"):
            values = [f"{key} {value:.4f}" for key, value in figures[part].items() if isinstance(value, float)]
            log.info(f"{name}, {part}: {figures[part]['users']:,} users {', '.join(values)}")
    with new_folder(output) as folder:
        write_json(folder / "metrics.json", rows)
    log.info(f"wrote {output / 'metrics.json'}")


def score_systems(learned: list[Artifact], inputs: Inputs, dataset: Dataset, config: Config) -> Iterator[NamedScores]:
    """Load trained systems, one at a time."""
    from student.systems import load_student_system  # with torch: slow to import
    from teacher.systems import load_teacher_system

    for artifact in learned:
        if artifact.kind == "teacher":
            ids = SemanticIDs.load(inputs.semantic_ids.folder, dataset.n_items)
            system = load_teacher_system(artifact, dataset, ids, config.device)
        else:
            system = load_student_system(artifact, config.device)
        yield NamedScores(system.name, "", partial(system.score_all, exclude_bought=config.exclude_bought))


if __name__ == "__main__":
    run(main, Config)
