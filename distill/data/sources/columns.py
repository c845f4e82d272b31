"""Columns of raw tables, with one clear message where one is missing or cannot be converted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from distill.data.sources.numbering import numbered
from distill.runtime.config import suggest
from distill.runtime.errors import UserError


def named_column(columns: pa.Table, name: str, where: str, hint: str = "") -> pa.ChunkedArray:
    """Get a column as it is.

    Args:
        columns: the table.
        name: of the column.
        where: the file, for the message.
        hint: what to do, for the message.

    Raises:
        UserError: no such column.
    """
    if name not in columns.column_names:
        raise UserError(f"{where}: missing column {name!r}. {suggest(name, columns.column_names)} {hint}".rstrip())
    return columns[name]


def need_column(columns: pa.Table, name: str, where: str, hint: str = "") -> pa.Array:
    """Get a column as strings; arguments and errors as `named_column`."""
    column = named_column(columns, name, where, hint).combine_chunks()
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def need_ids(columns: pa.Table, name: str, where: str, hint: str = "") -> pa.DictionaryArray:
    """Get a column of ids, numbered as by `numbered`; arguments and errors as `named_column`."""
    return numbered(named_column(columns, name, where, hint))


def floats(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Convert numbers, or strings of numbers, to floats [n]; raises `pa.ArrowInvalid`."""
    return column.cast(pa.float64()).to_numpy()


def to_numbers(
    column: pa.Array | pa.ChunkedArray,
    where: Callable[[int], str],
    expected: str,
    convert: Callable[[Any], np.ndarray] = floats,
) -> np.ndarray:
    """Convert a column to floats [n].

    Args:
        column: as it was read.
        where: row -> place in a file, for the message.
        expected: what the column should hold, for the message.
        convert: the conversion; raises `pa.ArrowInvalid` where it fails.

    Raises:
        UserError: names the first row that cannot be converted.
    """
    try:
        return convert(column)
    except pa.ArrowInvalid:
        check_each(column, where, expected, convert)
        raise mixed_forms(where(0), expected, column[0].as_py()) from None


def check_each(
    column: pa.Array | pa.ChunkedArray,
    where: Callable[[int], str],
    expected: str,
    convert: Callable[[Any], np.ndarray],
) -> None:
    """Convert each row by itself; slow, for messages only. Arguments and errors as `to_numbers`."""
    for row in range(len(column)):
        try:
            convert(column.slice(row, 1))
        except pa.ArrowInvalid:
            raise UserError(
                f"{where(row)}: expected {expected}, got {column[row].as_py()!r}. Mend or remove the line."
            ) from None


def mixed_forms(place: str, expected: str, value: object) -> UserError:
    """Make the error for a column whose rows can be converted one by one, but not together (numbers and dates)."""
    return UserError(
        f"{place}: expected {expected}, in all lines of the same form; got {value!r} here and other "
        "forms below. Write all of them alike."
    )
