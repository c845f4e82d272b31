"""The table at the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from distill.evaluation.report.systems import Row
from distill.evaluation.report.table import Line, build_table, headline, verdict
from distill.runtime.terminal import cell

FILE_WIDTH = 200  # characters of a line where the output is no terminal


def print_table(rows: Sequence[Row]) -> None:
    """Print the table and the verdict."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    content = build_table(rows)
    table = Table(title=cell(headline(rows)), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("system", no_wrap=True)
    for column in content.columns:
        table.add_column(column.head, justify="right")
    for line in content.lines:
        values = [cell(value.with_spread, "bold" if value.best else "") for value in line.cells]
        table.add_row(cell(line.label, _style(line)), *values)
    console.print(table)
    console.print(cell(verdict(rows)))


def _style(line: Line) -> str:
    if line.is_bound:
        return "dim"
    return "yellow" if line.is_floor else "green" if line.beats_floor else ""
