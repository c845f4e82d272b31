"""Recommend from the shell with a trained student.

    python scripts/recommend.py --student runs/demo/students/dwr --history D0000,D0042 --k 5
    python scripts/recommend.py --student runs/demo/students/dwr --file histories.txt --format json
    python scripts/recommend.py --student runs/demo/baselines/sasrec --history D0000

Needs nothing of the teacher: neither transformers nor peft nor datasets.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from distill.runtime.config import run
from distill.runtime.terminal import cell
from student.config import Precision
from student.histories import read_histories


@dataclass(frozen=True)
class Config:
    """Recommend next items: python scripts/recommend.py --student FOLDER --history ID,ID,... [--field value ...]."""

    student: Path = Path("runs/demo/students/dwr")
    """Folder of the student or item model."""
    dataset: Path | None = None
    """Data set that an item model was trained on, for its item ids and titles (default: the folder `dataset` of its
    run); students have them."""
    history: str | None = None
    """Item ids, oldest first, with commas between."""
    file: Path | None = None
    """Histories, one per line: item ids with commas between, or a JSON list; - reads the standard input."""
    k: PositiveInt = 10
    """Items per list."""
    width: PositiveInt = 20
    """Beams (paper: 20); at least k are used. Item models score all items."""
    skip_unknown: bool = False
    """Ignore item ids that the student does not know, instead of refusing them."""
    exclude_bought: bool | None = None
    """Never recommend items of the history (default: as the student was trained)."""
    format: Literal["table", "json"] = "table"
    """A table, or one JSON object per line."""
    device: str = "cpu"
    """cpu or cuda."""
    precision: Precision = "auto"
    """Of the matrix products; auto: bfloat16 for students from 4 M parameters, where the processor or GPU has it."""


def main(config: Config) -> None:
    """Read histories, recommend, print."""
    histories = read_histories(config.history, config.file)

    from student.load_student import dataset_of, is_item_model, load_student  # imported late: it loads torch

    data = dataset_of(config.student, config.dataset) if config.dataset or is_item_model(config.student) else None
    student = load_student(config.student, data, config.device, config.precision)
    lists = student.recommend(histories, config.k, config.width, config.exclude_bought, config.skip_unknown)
    for history, items in zip(histories, lists, strict=True):
        if config.format == "json":
            print(json.dumps({"history": history, "items": [asdict(item) for item in items]}, ensure_ascii=False))
        else:
            print_table(history, items)


def print_table(history: list[str], items: list) -> None:
    """Print one list of recommendations as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=cell(f"after {', '.join(history[-5:])}"), box=box.SIMPLE_HEAD, title_justify="left")
    for head in ("", "item", "title", "score"):
        table.add_column(head, justify="right" if head in ("", "score") else "left")
    for place, item in enumerate(items, 1):
        table.add_row(str(place), cell(item.item_id), cell(item.title), f"{item.score:.3f}")
    Console().print(table)


if __name__ == "__main__":
    run(main, Config)
