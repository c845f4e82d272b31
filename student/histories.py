"""Histories of item numbers as padded arrays, and of item ids as text."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.dataset import PAD
from distill.runtime.errors import UserError


def pad_histories(histories: Sequence[Sequence[int]]) -> np.ndarray:
    """Pad histories of item numbers with -1 on the right to the longest [users, length], length at least 1."""
    padded = np.full((len(histories), max([1, *map(len, histories)])), PAD, dtype=np.int64)
    for row, history in enumerate(histories):
        padded[row, : len(history)] = history
    return padded


def check_histories(histories: Any) -> None:
    """Refuse what is no sequence of sequences of item ids; a text would be read as a sequence of letters.

    Raises:
        UserError: names the first row that is no history.
    """
    if isinstance(histories, str | bytes | dict) or not isinstance(histories, Sequence | np.ndarray):
        raise UserError(f"histories is a {type(histories).__name__}; expected a list of lists of item ids.")
    for row, history in enumerate(histories):
        if isinstance(history, str | bytes | dict) or not isinstance(history, Sequence | np.ndarray):
            raise UserError(f"History {row} is {str(history)[:60]!r}; expected a list of item ids.")
        for item_id in history:
            if not isinstance(item_id, str):
                raise UserError(f"History {row} holds {str(item_id)[:60]}; expected item ids, which are texts.")


def whole_number(name: str, value: Any) -> int:
    """Check an argument that must be a whole number of at least 1, and return it as an int.

    Raises:
        UserError: names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UserError(f"{name} is {str(value)[:60]}; expected a whole number of at least 1.")
    return int(value)


def read_histories(history: str | None, file: Path | None) -> list[list[str]]:
    """Read histories of item ids, oldest first: ids with commas between, or a JSON list.

    Args:
        history: one history.
        file: histories, one per line; - reads the standard input.

    Raises:
        UserError: neither or both are given, no such file, a line without items.
    """
    if (history is None) == (file is None):
        raise UserError("Name either --history ID,ID,... or --file FILE.")
    if history is not None:
        lines, source = [history], "--history"
    elif str(file) == "-":
        lines, source = sys.stdin.read().removeprefix("\ufeff").splitlines(), "standard input"
    else:
        try:
            lines, source = file.read_text(encoding="utf-8-sig").splitlines(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"Cannot read {file}: {getattr(error, 'strerror', None) or error}.") from None
    if not lines:
        raise UserError(f"{source} holds no history.")
    return [parse_history(line, f"{source}, line {number}") for number, line in enumerate(lines, 1)]


def parse_history(line: str, source: str) -> list[str]:
    """Parse one history of item ids.

    Raises:
        UserError: no items, or a damaged JSON list; the message begins with `source`.
    """
    if line.lstrip().startswith("["):
        try:
            items = [_item_id(item) for item in json.loads(line)]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source}: not a JSON list of item ids ({error}).") from None
    else:
        items = [item.strip() for item in line.split(",") if item.strip()]
    if not items or not all(items):
        raise UserError(f"{source}: expected item ids with commas between, got {line!r}.")
    return items


def _item_id(value: Any) -> str:
    """Take a text or a whole number for an item id; raises ValueError for other values."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"expected a text, got {str(value)[:60]}")
    return str(value)
