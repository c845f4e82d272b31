"""Plain tables: `interactions.csv` (or .tsv, .parquet) with columns for users, items and times, and an optional
`items.csv` (or .tsv, .parquet) with item_id and any of title, description, brand, categories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distill.data.dataset import TEXT_COLUMNS
from distill.data.sources.base import Options, Source, check_ratings, check_texts, find_file, group
from distill.data.sources.columns import named_column, need_column, need_ids, to_numbers
from distill.data.sources.numbering import MERGE_ROWS, check_ids, merged, number_items, with_numbers
from distill.data.sources.text_table import TextTable
from distill.runtime.errors import UserError
from distill.runtime.parquet import read_parquet

TIME = "a time, as a number of seconds or like 2024-05-31 12:00:00"
ENDINGS = (".csv", ".tsv", ".parquet")


def files(folder: Path, options: Options) -> list[Path]:
    """List the files that `read` would read.

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
        inter = find_file(folder, "interactions.[cpt]*")
    items = find_file(folder, "items.[cpt]*", needed=False)
    paths = [inter] + ([items] if items else [])
    for path in paths:
        if path.suffix not in ENDINGS:
            raise UserError(f"{path}: expected a file that ends in {', '.join(ENDINGS)}.")
    return paths


def read(folder: Path, options: Options) -> Source:
    """Read the tables.

    Raises:
        UserError: as `files`; malformed or cut-off files, missing columns, blank or duplicate ids, bad times, unknown
            items, items without text.
    """
    paths = files(folder, options)
    ids = [options.user_column, options.item_column]
    times_and_ratings = [options.time_column, options.rating_column if options.min_rating is not None else None]
    rows, where = _read(paths[0], [*ids, *filter(None, times_and_ratings)], ids)
    users = need_ids(rows, options.user_column, str(paths[0]), "Name it with --user_column.")
    named = need_ids(rows, options.item_column, str(paths[0]), "Name it with --item_column.")
    check_ids(users, "user", where, unique=False)
    check_ids(named, "item", where, unique=False)
    times = ratings = None
    if options.time_column is not None:
        hint = "Name it with --time_column (null: rows are in time order)."
        times = to_numbers(named_column(rows, options.time_column, str(paths[0]), hint), where, TIME, _convert)
    if options.min_rating is not None:
        column = named_column(rows, options.rating_column, str(paths[0]), "Name it with --rating_column.")
        ratings = to_numbers(column, where, "a rating as a number", _convert)
        check_ratings(ratings, where)
    if len(paths) == 1:
        known = named.dictionary
        items = {"item_id": known}
    else:
        table, item_where = _read(paths[1])
        _check_types(table.schema, (options.item_column, *TEXT_COLUMNS), paths[1])
        known = need_column(table, options.item_column, str(paths[1]), "Name it with --item_column.")
        check_ids(known, "item", item_where, unique=True)
        columns = [name for name in TEXT_COLUMNS if name in table.column_names]
        items = {"item_id": known} | {name: need_column(table, name, "").fill_null("") for name in columns}
        if not columns:
            raise UserError(f"{paths[1]}: expected a column of texts ({', '.join(TEXT_COLUMNS)}), found none.")
        check_texts(pa.table(items), item_where, options.empty_text)
    numbers = number_items(named, known, where, str(paths[-1]))
    return group(pa.table(items), users, numbers, times, ratings, str(paths[0]), where)


def _read(path: Path, only: list[str] | None = None, ids: Sequence[str] = ()) -> tuple[pa.Table, Callable[[int], str]]:
    """Read a table; returns it and a function row -> place for messages. `only` and `ids` as for TextTable."""
    if path.suffix == ".parquet":
        return _read_parquet(path, only, ids), lambda row: f"{path} row {row}"
    table = TextTable.read(path, "\t" if path.suffix == ".tsv" else ",", quoted=True, only=only, ids=ids)
    return table.columns, table.where


def _check_types(schema: pa.Schema, names: Sequence[str], path: Path) -> None:
    """Refuse columns of ids and texts that hold lists, structs or bytes, and two columns of one name.

    Raises:
        UserError: names the first of them.
    """
    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if field.name in names and (
            pa.types.is_nested(kind)
            or pa.types.is_binary(kind)
            or pa.types.is_large_binary(kind)
            or pa.types.is_fixed_size_binary(kind)
        ):
            raise UserError(
                f"{path}: column {field.name!r} holds {field.type}; expected text or numbers. Convert it, lists for "
                "example by joining their parts with commas."
            )
    for name in names:
        count = schema.names.count(name)
        if count > 1:
            raise UserError(f"{path}: expected one column {name!r}, found {count}. Rename the others.")


def _read_parquet(path: Path, only: list[str] | None, ids: Sequence[str]) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        _check_types(file.schema_arrow, ids, path)
        _check_types(pa.schema([(name, pa.null()) for name in file.schema_arrow.names]), only or (), path)
        # if a column is missing, read all, so that the message can name them
        narrow = only if set(only or ()) <= set(file.schema_arrow.names) else None
        tables = (_checked(pa.table(batch)) for batch in file.iter_batches(MERGE_ROWS, columns=narrow))
        return merged((with_numbers(table, ids) for table in tables), file.schema_arrow.empty_table())
    except (pa.ArrowException, OSError, ValueError):
        return read_parquet(path, ())  # raises the message


def _checked(table: pa.Table) -> pa.Table:
    """Return a table whose texts are UTF-8; raises `pa.ArrowInvalid` otherwise."""
    table.validate(full=True)
    return table


def _convert(column: pa.ChunkedArray) -> np.ndarray:
    """Convert numbers, dates or strings of either to floats [n]; dates become seconds since 1970."""
    if column.null_count:
        raise pa.ArrowInvalid("null")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            return pc.cast(column, pa.float64()).to_numpy()
        except pa.ArrowInvalid:
            column = pc.cast(column, pa.timestamp("us"))
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        microseconds = column.cast(pa.timestamp("us", getattr(column.type, "tz", None))).cast(pa.int64())
        return microseconds.to_numpy() / 1e6
    if pa.types.is_boolean(column.type):
        raise pa.ArrowInvalid("truth values")
    try:
        return column.cast(pa.float64()).to_numpy()
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise pa.ArrowInvalid(str(error)) from None
