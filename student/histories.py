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
