"""How far a data set is solved by shortcuts: one small table.

python scripts/audit.py --run runs/demo
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.config import JobSettings, run
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class Config(JobSettings):
    """Audit a data set: python scripts/audit.py [--run RUN] [--field value ...]."""

    run: Path = Path("runs/demo")
    """Folder of the run; inputs and output default to their names inside it."""
    dataset: Path | None = None
    """Dataset artifact (default: RUN/dataset)."""
    embeddings: Path | None = None
    """Embeddings that say what is alike (default: RUN/embeddings where it exists, otherwise nothing is said of it)."""
    output: Path | None = None
    """Where the table goes (default: RUN/audit)."""
    exclude_bought: bool | None = None
    """Leave items of the history out of lists (default: where the training part never has an item twice)."""
    users: int = 5000
    """Validation examples that are ranked, at most."""


def main(config: Config) -> None:
    """Measure, write `audit.json` and `audit.md`, print the table."""
    if config.users < 1:
        raise UserError(f"--users is {config.users}; expected 1 or more.")
    data = artifacts.read(config.dataset or config.run / "dataset", "dataset")
    table = config.embeddings or config.run / "embeddings"
    inputs = [data, *([artifacts.read(table, "embeddings")] if config.embeddings or table.exists() else [])]
    stage = ArtifactJob("audit", config, config.output or config.run / "audit", inputs, overwrite=config.overwrite)
    if not stage.is_finished():
        from safetensors.numpy import load_file

        from distill.data.dataset import Dataset
        from distill.evaluation.audit import audit

        dataset = Dataset.load(data.folder)
        vectors = load_file(table / "embeddings.safetensors")["embeddings"] if len(inputs) > 1 else None
        if vectors is not None and len(vectors) != dataset.n_items:
            raise UserError(f"{table} has {len(vectors)} rows, the data set {dataset.n_items} items; embed them again.")
        found = audit(dataset, vectors, dataset.resolve_exclude_bought(config.exclude_bought), config.users)
        lines = ["| measure | value | |", "|---|---:|---|"]
        lines += [f"| {name} | {value:.3f} | {meaning} |" for name, value, meaning in found]
        with stage.write() as folder:
            write_json(folder / "audit.json", {finding.name: finding.value for finding in found})
            (folder / "audit.md").write_text("\n".join(lines) + "\n")
    print((stage.output / "audit.md").read_text(), end="")


if __name__ == "__main__":
    run(main, Config)
