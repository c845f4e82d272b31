"""Read semantic IDs from LC-Rec's `index.json`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from distill.runtime.errors import UserError
from distill.runtime.json_files import read_object
from distill.semantic_ids.ids import LEVEL_NAMES, MAX_CODEBOOK

TOKEN = re.compile(r"<([a-z])_(0|[1-9]\d{0,5})>")


def read_index(path: Path, n_items: int, codebook_size: int) -> np.ndarray:
    """Read a file like `{"0": ["<a_137>", "<b_112>", "<c_79>", "<d_200>"], …}`.

    Args:
        path: the file.
        n_items: items of the data set; keys must be "0" to n_items − 1.
        codebook_size: codes must be below.

    Returns:
        Codes [n_items, levels] (int64).

    Raises:
        UserError: not such a file, items missing or too many, malformed tokens, unequal numbers of levels.
    """
    if codebook_size > MAX_CODEBOOK:
        raise UserError(f"codebook_size is {codebook_size}; it must be from 1 to {MAX_CODEBOOK}.")
    table = read_object(path)
    if not table:
        raise UserError(f'{path}: expected an object like {{"0": ["<a_137>", "<b_112>"]}}, found an empty one.')
    expected = {str(item) for item in range(n_items)}
    _refuse_items(path, "misses {} of the data set's {} items", expected - table.keys(), n_items)
    _refuse_items(path, "has {} items that the data set of {} has not", table.keys() - expected, n_items)
    rows = [_read_tokens(table[str(item)], f"{path}, item {item}", codebook_size) for item in range(n_items)]
    levels = len(rows[0])
    for item, row in enumerate(rows):
        if len(row) != levels:
            raise UserError(f"{path}, item {item}: has {len(row)} levels, item 0 has {levels}; all must have as many.")
    return np.array(rows, dtype=np.int64)


def _refuse_items(path: Path, message: str, keys: set[str], n_items: int) -> None:
    if keys:
        first = min(keys, key=lambda key: (len(key), key))
        raise UserError(f"{path} {message.format(len(keys), n_items)}, the first is item {first!r}.")


def _read_tokens(tokens: object, where: str, codebook_size: int) -> list[int]:
    """Read the codes of an item from its tokens."""
    if not isinstance(tokens, list) or not 1 <= len(tokens) <= len(LEVEL_NAMES):
        raise UserError(f"{where}: expected a list of 1 to {len(LEVEL_NAMES)} tokens, found {json.dumps(tokens)}.")
    codes = []
    for level, token in enumerate(tokens):
        match = TOKEN.fullmatch(token) if isinstance(token, str) else None
        if match is None or match[1] != LEVEL_NAMES[level]:
            wanted = f"<{LEVEL_NAMES[level]}_NUMBER>"
            raise UserError(f"{where}: malformed token {json.dumps(token)} at level {level + 1}, expected {wanted}.")
        codes.append(int(match[2]))
        if codes[-1] >= codebook_size:
            raise UserError(f"{where}: {token} is outside a codebook of {codebook_size}; raise codebook_size.")
    return codes
