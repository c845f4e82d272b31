"""Markdown tables, written the same way by every command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[Any]], text_columns: Sequence[int] = (0,)) -> str:
    """Write a table in GitHub's Markdown; the text ends with a line break.

    Cells are written as they are, without padding, so that a changed value changes one line of a diff and no others.

    Args:
        heads: one head for each column.
        rows: cells, as many as there are heads; a vertical bar within a cell is escaped.
        text_columns: numbers of the columns that hold text and are aligned left; the others are aligned right.
    """
    rules = ["---" if number in text_columns else "---:" for number in range(len(heads))]
    lines = [_line(heads), f"|{'|'.join(rules)}|", *(_line(row) for row in rows)]
    return "".join(f"{line}\n" for line in lines)


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"
