"""Audit a data set: how far do shortcuts solve it? Prints one small table.

python scripts/audit.py --run runs/demo
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import PositiveInt

from distill.data.dataset import Dataset
from distill.evaluation.audit import as_markdown, audit
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.config import JobSettings, run
from distill.semantic_ids.embeddings import read_embeddings, text_vectors


@dataclass(frozen=True)
class Config(JobSettings):
    """Audit a data set: python scripts/audit.py [--run RUN] [--field value ...]."""

    run: Path = Path("runs/demo")
    """Folder of the run; inputs and output default to their names inside it."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    embeddings: Path | None = None
    """Embeddings that tell which items are similar (default: RUN/embeddings where it exists, otherwise similarity is
    not measured)."""
    output: Path | None = None
    """Where the table goes (default: RUN/audit)."""
    exclude_bought: bool | None = None
    """Leave items of the history out of lists (default: where the training part never has an item twice)."""
    users: PositiveInt = 5000
    """Validation examples that are ranked, at most."""


def main(config: Config) -> None:
    """Measure, write `audit.json` and `audit.md`, print the table."""
    data = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    table = config.embeddings or config.run / "embeddings"
    embeddings = artifacts.read(table, "embeddings") if config.embeddings or table.exists() else None
    inputs = [data, embeddings] if embeddings else [data]
    job = ArtifactJob("audit", config, config.output or config.run / "audit", inputs, overwrite=config.overwrite)
    if not job.is_finished():
        dataset = Dataset.load(data.folder)
        vectors = read_embeddings(embeddings, dataset.n_items) if embeddings else None
        texts = text_vectors(embeddings, dataset.n_items) if embeddings else None
        exclude_bought = dataset.resolve_exclude_bought(config.exclude_bought)
        findings = audit(dataset, vectors, exclude_bought, config.users, texts)
        with job.write() as folder:
            write_json(folder / "audit.json", {finding.name: finding.value for finding in findings})
            (folder / "audit.md").write_text(as_markdown(findings))
    print((job.output / "audit.md").read_text(), end="")


if __name__ == "__main__":
    run(main, Config)
