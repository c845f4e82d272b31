"""Turn raw interactions into a data set; formats and filters are described in docs/data.md.

python scripts/prepare_data.py --config configs/demo/data.yaml
python scripts/prepare_data.py --format table --input FOLDER --run runs/NAME
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from distill.data.config import EngineSettings, PrepareSettings, check, check_engine
from distill.data.out_of_core.prepare import PreparedChunks, prepare_in_chunks
from distill.data.prepare import PreparedData, check_moments, prepare, raw_identity
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import JobSettings, run


@dataclass(frozen=True)
class Config(EngineSettings, PrepareSettings, JobSettings):
    """Turn raw interactions into the data set that every later command reads."""

    run: Path = Path("runs/demo")
    """Root of a run: commands write their results below it."""
    output: Path | None = None
    """Folder of the data set; RUN/dataset if not given."""


def main(config: Config) -> None:
    """Check everything, then write the data set and print its statistics."""
    check(config)
    check_engine(config, config)
    check_moments(config)
    output = config.output or config.run / "dataset"
    job = ArtifactJob("dataset", config, output, extra=raw_identity(config), overwrite=config.overwrite)
    if job.is_finished():
        return
    if config.engine == "memory":
        prepared = prepare(config)
        job.facts = prepared.facts()
        with job.write() as folder:
            prepared.write(folder)
    else:
        with job.write() as folder, prepare_in_chunks(config, config, folder) as prepared:
            job.facts = prepared.facts()
            prepared.write(folder)
    print_statistics(prepared)


def print_statistics(prepared: PreparedData | PreparedChunks) -> None:
    """Print the columns of the paper's Table 3."""
    numbers, formats = prepared.facts(), {"sparsity": ".2%", "mean_length": ".2f"}
    table = Table(*(name.replace("_", " ") for name in numbers))
    table.add_row(*(format(value, formats.get(name, ",")) for name, value in numbers.items()))
    console = Console()
    console.print(table)
    if prepared.short_users:
        console.print(f"{prepared.short_users:,} users with too few items were left out.")


if __name__ == "__main__":
    run(main, Config, "demo/data.yaml")
