"""Write the vectors by which a run's teacher and students represent the items (the map of the paper's Figure 4).

python scripts/represent_items.py --run runs/demo
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import JobSettings, run
from distill.runtime.devices import check_device, choose_device
from distill.semantic_ids.lineage import adopt_teacher


@dataclass(frozen=True)
class Config(JobSettings):
    """Represent the items: python scripts/represent_items.py --run DIR [--field value ...]."""

    run: Path = Path("runs/demo")
    """Folder of the run: its dataset, semantic_ids, teacher and students are read."""
    students: list[str] = field(default_factory=lambda: ["smooth", "distill"])
    """Names of students (paper: smooth and distill)."""
    output: Path | None = None
    """Where the vectors go (default: RUN/item_vectors)."""
    device: str = field(default="auto", metadata={"identity": False})
    """auto, cpu or cuda."""


def main(config: Config) -> None:
    """Load each system, write `vectors.safetensors`: a float32 table [n_items, dim] for each."""
    names = ("dataset", "semantic_ids", "teacher")
    dataset_artifact, ids_artifact, teacher = (artifacts.read(config.run / name, name) for name in names)
    students = [artifacts.read(config.run / "students" / name, "student") for name in config.students]
    inputs = [dataset_artifact, ids_artifact, adopt_teacher(teacher, ids_artifact), *students]
    job = ArtifactJob(
        "item_vectors", config, config.output or config.run / "item_vectors", inputs, overwrite=config.overwrite
    )
    if job.is_finished():
        return
    check_device(config.device)

    from safetensors.numpy import save_file

    from distill.data.dataset import Dataset  # with torch: slow to import
    from distill.semantic_ids.ids import SemanticIDs
    from student.item_states import item_states
    from student.recommender import Recommender
    from teacher.engines.hf import HFEngine

    device = choose_device(config.device)
    dataset = Dataset.load(dataset_artifact.folder)
    ids = SemanticIDs.load(ids_artifact.folder, dataset.n_items)
    vectors = {"teacher": HFEngine.load(teacher.folder, dataset, ids, device).item_states()}
    for student in students:
        recommender = Recommender.from_pretrained(student.folder, device)
        vectors[student.folder.name] = item_states(recommender.model, recommender.codes)
    with job.write() as folder:
        save_file(vectors, folder / "vectors.safetensors")


if __name__ == "__main__":
    run(main, Config)
