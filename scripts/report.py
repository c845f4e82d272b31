"""Write the report of a finished evaluation: metrics.json, report.md and one self-contained page, report.html.

    python scripts/report.py --config configs/demo/report.yaml

The evaluation is required. Training curves, quality of IDs and labels, cost and origin are shown for the artifacts that
the run holds.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse.typing import NonNegativeInt

from distill.evaluation.report.examples import read_examples
from distill.evaluation.report.markdown import render_markdown
from distill.evaluation.report.page import render_page, template_hash
from distill.evaluation.report.sources import read_sources
from distill.evaluation.report.summary import summarise
from distill.evaluation.report.terminal import print_table
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.config import JobSettings, run


@dataclass(frozen=True)
class Config(JobSettings):
    """Write the report of a run: table, curves, examples, cost and origin."""

    run: Path = Path("runs/demo")
    """Root of a run: the commands put their results below it."""
    evaluation: Path | None = None
    """Folder of the evaluation (default: RUN/evaluation)."""
    output: Path | None = None
    """Folder of the report (default: RUN/report)."""
    seeds: list[Path] = field(default_factory=list)
    """Other runs of the same data with other seeds; the table then shows mean ± standard deviation."""
    examples: NonNegativeInt = 12
    """Users whose recommendations are shown with titles."""


def main(config: Config) -> None:
    """Read and check everything, render, write, and print the table."""
    sources = read_sources(config.run, config.evaluation, config.seeds)
    output = config.output or config.run / "report"
    identity = sources.identity() | {"page template": template_hash()}
    job = ArtifactJob("report", config, output, [sources.evaluation], extra=identity, overwrite=config.overwrite)
    if job.is_finished():
        rows = json.loads((output / "metrics.json").read_text())
    else:  # everything is read and rendered before the first byte is written
        summary = summarise(sources)
        rows = summary.rows
        command = " ".join([Path(sys.executable).name, *sys.argv])
        markdown = render_markdown(summary, sources.artifacts, command)
        examples = read_examples(config.examples, sources.dataset, sources.evaluation) if config.examples else []
        page = render_page(summary, sources.artifacts, examples)
        with job.write() as folder:
            write_json(folder / "metrics.json", rows)
            (folder / "report.md").write_text(markdown, encoding="utf-8")
            (folder / "report.html").write_text(page, encoding="utf-8")
    print_table(rows)
    print(f"report: {output / 'report.html'}")


if __name__ == "__main__":
    run(main, Config, "demo/report.yaml")
