"""Recommend from the shell with a trained student.

    python scripts/recommend.py --student runs/demo/students/dwr --history D0000,D0042 --k 5
    python scripts/recommend.py --student runs/demo/students/dwr --file histories.txt --format json

Needs nothing of the teacher: neither transformers nor peft nor datasets.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill.runtime.config import run
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class Config:
    """Recommend next items: python scripts/recommend.py --student FOLDER --history ID,ID,... [--field value ...]."""

    student: Path = Path("runs/demo/students/dwr")
    """Folder of the student."""
    history: str | None = None
    """Item ids, oldest first, with commas between."""
    file: Path | None = None
    """Histories, one a line: item ids with commas between, or a JSON list; - reads the standard input."""
    k: int = 10
    """Items a list."""
    width: int = 20
    """Beams (paper: 20); at least k are used."""
    skip_unknown: bool = False
    """Leave out item ids that the student does not know, instead of refusing."""
    exclude_bought: bool | None = None
    """Never recommend items of the history (default: as the student was trained)."""
    format: Literal["table", "json"] = "table"
    """A table, or one JSON object a line."""
    device: str = "cpu"
    """cpu or cuda."""


def main(config: Config) -> None:
    """Read histories, recommend, print."""
    if config.k < 1 or config.width < 1:
        raise UserError(f"k and width must be at least 1, got {config.k} and {config.width}.")
    histories = read_histories(config)

    from student.recommender import Recommender  # torch: not needed to refuse a mistake

    student = Recommender.from_pretrained(config.student, config.device)
    lists = student.recommend(histories, config.k, config.width, config.exclude_bought, config.skip_unknown)
    for history, items in zip(histories, lists, strict=True):
        if config.format == "json":
            found = [{"item_id": item.item_id, "score": item.score, "title": item.title} for item in items]
            print(json.dumps({"history": history, "items": found}, ensure_ascii=False))
        else:
            print_table(history, items)


def read_histories(config: Config) -> list[list[str]]:
    """The histories that were asked for.

    Raises:
        UserError: none or two sources, no such file, a line without items.
    """
    if (config.history is None) == (config.file is None):
        raise UserError("Name either --history ID,ID,... or --file FILE.")
    if config.history is not None:
        lines, place = [config.history], "--history"
    elif str(config.file) == "-":
        lines, place = sys.stdin.read().splitlines(), "standard input"
    else:
        try:
            lines, place = config.file.read_text(encoding="utf-8").splitlines(), str(config.file)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"Cannot read {config.file}: {getattr(error, 'strerror', None) or error}.") from None
    histories = []
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("["):
            try:
                items = [str(item) for item in json.loads(line)]
            except ValueError as error:
                raise UserError(f"{place}, line {number}: not a JSON list of item ids ({error}).") from None
        else:
            items = [item.strip() for item in line.split(",") if item.strip()]
        if not items:
            raise UserError(f"{place}, line {number}: expected item ids with commas between, got {line!r}.")
        histories.append(items)
    if not histories:
        raise UserError(f"{place} holds no history.")
    return histories


def print_table(history: list[str], items: list) -> None:
    """One list for people."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"after {escape(', '.join(history[-5:]))}", box=box.SIMPLE_HEAD, title_justify="left")
    for head in ("", "item", "title", "score"):
        table.add_column(head, justify="right" if head in ("", "score") else "left")
    for place, item in enumerate(items, 1):
        table.add_row(str(place), escape(item.item_id), escape(item.title), f"{item.score:.3f}")
    Console().print(table)


if __name__ == "__main__":
    run(main, Config)
