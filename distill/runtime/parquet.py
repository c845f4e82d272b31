"""Reading parquet files of artifacts with one clear message where they are damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill.runtime.errors import UserError


def read_parquet(path: Path, columns: Sequence[str], leave_out: Sequence[str] = ()) -> pa.Table:
    """Read a parquet file that must hold the given columns.

    Args:
        path: of the file.
        columns: it must hold these, and may hold others, which are read too.
        leave_out: columns that are not read.

    Raises:
        UserError: missing, truncated, without one of the columns, or with two columns of one name.
    """
    try:
        file = pq.ParquetFile(path)  # read_table would import pandas first
        names = file.schema_arrow.names
        table = file.read([name for name in names if name not in leave_out]) if leave_out else file.read()
        table.validate(full=True)  # damaged pages may be decoded to lists that end before they begin
    except FileNotFoundError:
        raise UserError(f"Missing file {path}; its artifact is damaged, make it again with --overwrite.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable(path, error) from None
    for name in columns:
        if name not in names:
            raise UserError(f"{path} has no column {name!r}; it has {', '.join(names)}.")
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path} is damaged: it has {names.count(name)} columns {name!r}.")
    return table


def unreadable(path: Path, error: Exception) -> UserError:
    """Make the error for a file that is no parquet file, or a damaged one."""
    return UserError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]}).")


def text_column(table: pa.Table, name: str, path: Path, may_be_null: bool = False) -> pa.ChunkedArray:
    """Return a column of strings.

    Args:
        table: of `read_parquet`.
        name: of the column.
        path: of the file, for the message.
        may_be_null: whether rows may have no text; they are returned as null.

    Raises:
        UserError: other types, or rows without a text.
    """
    column = table[name]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if may_be_null and pa.types.is_null(kind):
        return column.cast(pa.string())
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise _wrong(path, name, "texts", column)
    if column.null_count and not may_be_null:
        raise _wrong(path, name, "texts", column)
    return column.cast(pa.string())


def id_column(table: pa.Table, name: str, path: Path) -> pa.ChunkedArray:
    """Return a column of strings, each of which appears once; arguments and errors as `text_column`."""
    column = text_column(table, name, path)
    if len(column.unique()) < len(column):
        raise UserError(f"{path} is damaged: column {name!r} holds an id twice.")
    return column


def whole_numbers(table: pa.Table, name: str, path: Path) -> np.ndarray:
    """Return a column of whole numbers as int64 [rows]; arguments and errors as `text_column`."""
    column = table[name]
    if not pa.types.is_integer(column.type) or column.null_count:
        raise _wrong(path, name, "whole numbers", column)
    return _as_int64(column.combine_chunks(), table, name, path)


def number_lists(table: pa.Table, name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a column of lists of whole numbers.

    Args:
        table, name, path: as for `text_column`.

    Returns:
        The numbers of all rows, one row after the other, int64 [n], and the start of each row's list [rows + 1].

    Raises:
        UserError: other types, rows without a list, lists with gaps.
    """
    column = table[name].combine_chunks()
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_integer(kind.value_type) or column.null_count:
        raise _wrong(path, name, "lists of whole numbers", table[name])
    values = column.flatten()
    if values.null_count:
        raise UserError(f"{path} is damaged: lists of column {name!r} have gaps.")
    lengths = column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return _as_int64(values, table, name, path), np.concatenate([[0], np.cumsum(lengths)])


def number_matrix(table: pa.Table, name: str, path: Path) -> np.ndarray:
    """Return a column of lists of whole numbers, all of one length, as int64 [rows, length]; else as `number_lists`."""
    values, offsets = number_lists(table, name, path)
    lengths = np.diff(offsets)
    if len(lengths) == 0 or lengths.min() != lengths.max() or lengths[0] == 0:
        raise UserError(f"{path} is damaged: the lists of column {name!r} differ in length, or there are none.")
    return values.reshape(len(lengths), -1)


def _as_int64(values: pa.Array, table: pa.Table, name: str, path: Path) -> np.ndarray:
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype == np.uint64 and array.max(initial=0) >= 2**63:
        raise _wrong(path, name, "numbers of at most 63 bits", table[name])
    return array.astype(np.int64)


def _wrong(path: Path, name: str, expected: str, column: pa.ChunkedArray) -> UserError:
    gaps = f", {column.null_count} of them missing" if column.null_count else ""
    return UserError(f"{path} is damaged: column {name!r} holds {column.type}{gaps}; expected {expected} in all rows.")
