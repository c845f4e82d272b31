"""Add a transition memory to a trained student, without training: `dwr` becomes `dwr+memory`.

    python scripts/add_memory.py --student runs/demo/students/dwr
    python scripts/add_memory.py --student runs/demo/students/dwr --content true

The second command adds the similarity of item texts too: `dwr` becomes `dwr+memory+content`. SASRec and GRU4Rec
(RUN/baselines) get memories in the same way. The settings of counter
and content, their shares and the discount of items that are bought often are chosen on the validation split.
`from_pretrained` loads the new student with its memory, and `scripts/evaluate.py` gives it a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from distill.data.dataset import Dataset
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import JobSettings, run
from distill.runtime.folders import discard
from distill.semantic_ids.embeddings import text_vectors
from student.memory_config import MemorySettings, check


@dataclass(frozen=True)
class Config(MemorySettings, JobSettings):
    """Add a memory to a student: python scripts/add_memory.py --student FOLDER [--field value ...]."""

    run: Path = Path("runs/demo")
    """Folder of the run; the data set defaults to its name inside it."""
    student: Path | None = None
    """Student artifact, or a network over items (default: RUN/students/dwr)."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    embeddings: Path | None = None
    """Embeddings whose text part `content` reads (default: RUN/embeddings)."""
    output: Path | None = None
    """Folder of the new student (default: STUDENT+memory, with `content` STUDENT+memory+content)."""
    device: str = field(default="cpu", metadata={"identity": False})
    """cpu or cuda."""


def main(config: Config) -> None:
    """Count, choose the shares, save the student with its memories."""
    check(config)
    source = artifacts.read_any(config.student or config.run / "students/dwr", ("student", "baseline"))
    data = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    inputs = [source, data]
    if config.content:
        inputs.append(artifacts.read(config.embeddings or config.run / "embeddings", "embeddings"))
    suffix = "+memory+content" if config.content else "+memory"
    output = config.output or source.folder.with_name(source.folder.name + suffix)
    job = ArtifactJob(source.kind, config, output, inputs, overwrite=config.overwrite)
    if job.is_finished():
        return

    from student.item_recommender import ItemRecommender  # with torch: slow to import
    from student.memory_tuning import add_memories
    from student.recommender import Recommender

    load = Recommender.from_pretrained if source.kind == "student" else ItemRecommender.from_pretrained
    dataset = Dataset.load(data.folder)
    texts = text_vectors(inputs[-1], dataset.n_items) if config.content else None
    with job.write() as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        student, job.facts = add_memories(load(source.folder, config.device), dataset, texts, config, scratch)
        student.save_pretrained(folder)
        discard(scratch)


if __name__ == "__main__":
    run(main, Config)
