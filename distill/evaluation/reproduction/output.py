"""What a reproduction writes: tables as csv, a Markdown page, and a drawing."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Output:
    """The files of one table or figure.

    Attributes:
        markdown: the page.
        rows: of NAME.csv.
        draw: writes the PNG to a path.
        further: rows of NAME-KEY.csv.
    """

    markdown: str
    rows: Sequence[Row]
    draw: Callable[[Path], None]
    further: dict[str, Sequence[Row]] = field(default_factory=dict)

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write all files into an existing folder; returns their paths."""
        tables = {name: self.rows} | {f"{name}-{key}": rows for key, rows in self.further.items()}
        paths = [folder / f"{stem}.csv" for stem in tables]
        for path, rows in zip(paths, tables.values(), strict=True):
            write_csv(path, rows)
        page, drawing = folder / f"{name}.md", folder / f"{name}.png"
        page.write_text(self.markdown, encoding="utf-8")
        self.draw(drawing)
        return [*paths, page, drawing]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows, with all columns that any of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def format_value(value: float | None, spread: float | None = None) -> str:
    """Format as 0.1234 ± 0.0012; – if there is no value; without a spread where runs agree, as counting does."""
    if value is None:
        return "–"
    return f"{value:.4f}" + (f" ± {spread:.4f}" if spread else "")
