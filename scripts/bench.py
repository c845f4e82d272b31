"""Measure speed and memory as ratios against a named alternative in the same run.

python scripts/bench.py decode --json decode.json

Subjects are the files of scripts/benches/. Each has a `Config`, whose fields are the command line's, and a `main` that
returns a flat object: names to figures.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from distill.runtime.artifacts import write_json
from distill.runtime.config import run, suggest
from distill.runtime.errors import UserError

SUBJECTS = sorted(path.stem for path in (Path(__file__).parent / "benches").glob("[!_]*.py"))


def main(argv: list[str]) -> None:
    """Run one subject, print its figures, and write them to the file that `--json` names."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\nSubjects: {', '.join(SUBJECTS)}. Options of one: python scripts/bench.py SUBJECT --help")
        return
    subject = argv.pop(0)
    if subject not in SUBJECTS:
        print(f"error: Unknown subject {subject!r}. {suggest(subject, SUBJECTS)}", file=sys.stderr)
        sys.exit(2)
    bench = importlib.import_module(f"benches.{subject}")

    def measure(config) -> None:
        if config.json is not None and not config.json.parent.is_dir():
            raise UserError(f"No folder {config.json.parent} to write {config.json.name} to; make it first.")
        figures = {"cores": len(os.sched_getaffinity(0)), **bench.main(config)}
        table = Table(title=f"bench {subject}")
        table.add_column("figure")
        table.add_column("value", justify="right")
        for name, value in figures.items():
            table.add_row(name, f"{value:,.4g}" if isinstance(value, float) else str(value))
        Console().print(table)
        if config.json is not None:
            write_json(config.json, figures)

    fields = {field.name for field in dataclasses.fields(bench.Config)}
    assert {"json", "seed"} <= fields, f"{subject}: its Config lacks json or seed"
    run(measure, bench.Config, argv=argv)


if __name__ == "__main__":
    main(sys.argv[1:])
