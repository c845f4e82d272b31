"""Plain tables: `interactions.csv` (or .tsv, .parquet) with columns for users, items and times, and an optional
`items.csv` (or .tsv, .parquet) with item_id and any of title, description, brand, categories.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.artifacts import UserError
from distill.catalog import TEXT_COLUMNS, read_parquet
from distill.sources import (
    Options,
    Source,
    TextTable,
    check_ids,
    check_texts,
    group,
    need_column,
    number_items,
    the_one,
)

ENDINGS = (".csv", ".tsv", ".parquet")


def files(folder: Path, options: Options) -> list[Path]:
    """The files that `read` reads.

    Args:
        folder: holds interactions.csv, .tsv or .parquet and perhaps items.csv, .tsv or .parquet; or is the file of
            interactions itself.
        options: not used.

    Raises:
        UserError: no such folder or file, or several that fit.
    """
    if folder.is_file():
        if folder.suffix not in ENDINGS:
            raise UserError(f"{folder}: expected a file that ends in {', '.join(ENDINGS)}.")
        inter, folder = folder, folder.parent
    else:
        inter = the_one(folder, "interactions.[cpt]*")
    items = the_one(folder, "items.[cpt]*", needed=False)
    found = [inter] + ([items] if items else [])
    for path in found:
        if path.suffix not in ENDINGS:
            raise UserError(f"{path}: expected a file that ends in {', '.join(ENDINGS)}.")
    return found


def read(folder: Path, options: Options) -> Source:
    """Read the tables.

    Raises:
        UserError: as `files`; malformed or cut-off files, missing columns, blank or duplicate ids, bad times, unknown
            items, items without text.
    """
    paths = files(folder, options)
    rows, where = _read(paths[0])
    users = need_column(rows, options.user_column, str(paths[0]), "Name it with --user_column.")
    named = need_column(rows, options.item_column, str(paths[0]), "Name it with --item_column.")
    check_ids(users, "user", where, unique=False)
    check_ids(named, "item", where, unique=False)
    times = None
    if options.time_column is not None:
        need_column(
            rows, options.time_column, str(paths[0]), "Name it with --time_column (null: rows are in time order)."
        )
        times = _seconds(rows[options.time_column].combine_chunks(), where)
    if len(paths) == 1:
        ids = named.unique()
        items = {"item_id": ids}
    else:
        table, item_where = _read(paths[1])
        ids = need_column(table, options.item_column, str(paths[1]), "Name it with --item_column.")
        check_ids(ids, "item", item_where, unique=True)
        columns = [name for name in TEXT_COLUMNS if name in table.column_names]
        items = {"item_id": ids} | {name: need_column(table, name, "").fill_null("") for name in columns}
        if not columns:
            raise UserError(f"{paths[1]}: expected a column of texts ({', '.join(TEXT_COLUMNS)}), found none.")
        check_texts(pa.table(items), item_where, options.empty_text)
    numbers = number_items(named, ids, where, str(paths[-1]))
    user_ids, sequences, stamps = group(users, numbers, times)
    return Source(pa.table(items), user_ids, sequences, stamps, str(paths[0]))


def _read(path: Path) -> tuple[pa.Table, Callable[[int], str]]:
    """A table, and row -> place for messages."""
    if path.suffix == ".parquet":
        return read_parquet(path, ()), lambda row: f"{path} row {row}"
    table = TextTable.read(path, "\t" if path.suffix == ".tsv" else ",", quoted=True)
    return table.columns, table.where


def _seconds(column: pa.Array, where: Callable[[int], str]) -> np.ndarray:
    """Numbers, dates or texts of either -> seconds since 1970 [n], float."""
    try:
        return _convert(column)
    except pa.ArrowInvalid:
        for row in range(len(column)):
            try:
                _convert(column.slice(row, 1))
            except pa.ArrowInvalid:
                raise UserError(
                    f"{where(row)}: expected a time, as a number of seconds or like 2024-05-31 12:00:00, "
                    f"got {column[row].as_py()!r}. Mend or remove the line."
                ) from None
        raise


def _convert(column: pa.Array) -> np.ndarray:
    if column.null_count:
        raise pa.ArrowInvalid("null")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            return pc.cast(column, pa.float64()).to_numpy()
        except pa.ArrowInvalid:
            column = pc.cast(column, pa.timestamp("us"))
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        microseconds = column.cast(pa.timestamp("us", getattr(column.type, "tz", None))).cast(pa.int64())
        return microseconds.to_numpy(zero_copy_only=False) / 1e6
    try:
        return column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise pa.ArrowInvalid(str(error)) from None
