"""Plain tables: `interactions.csv` (or .tsv, .parquet) with columns for users, items and times, and an optional
`items.csv` (or .tsv, .parquet) with item_id and any of title, description, brand, categories.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distill.data.dataset import TEXT_COLUMNS
from distill.data.sources.base import Options, Source, check_ratings, check_texts, find_file, group
from distill.data.sources.blocks import BlockColumns, InteractionBlocks, Part
from distill.data.sources.columns import named_column, need_column, need_ids, to_numbers
from distill.data.sources.numbering import MERGE_ROWS, check_ids, merged, number_items, with_numbers
from distill.data.sources.text_table import TextTable
from distill.runtime.errors import UserError
from distill.runtime.parquet import read_parquet, unreadable

TIME = "a time, as a number of seconds or like 2024-05-31 12:00:00"
ENDINGS = (".csv", ".tsv", ".parquet")
PARQUET_BLOCK = 1 << 20  # rows
# by default, all that was read is kept until the file is closed; the buffer: bytes of a column that are read at once
LITTLE_MEMORY = {"pre_buffer": False, "buffer_size": 1 << 20}


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
        items = pa.table({"item_id": known})
    else:
        items = _read_items(paths[1], options)
        known = items["item_id"].combine_chunks()
    numbers = number_items(named, known, where, str(paths[-1]))
    return group(items, users, numbers, times, ratings, str(paths[0]), where)


def read_blocks(folder: Path, options: Options) -> InteractionBlocks:
    """Open the tables, to read the interactions block by block.

    Raises:
        UserError: as `read`.
    """
    paths = files(folder, options)
    rating = options.rating_column if options.min_rating is not None else None
    names = [options.user_column, options.item_column, options.time_column, rating]
    hints = ("user", "item", "time", "rating")
    only = [name for name in names if name is not None]
    if paths[0].suffix == ".parquet":
        empty, tables, parts = _parquet_blocks(paths[0], only, names[:2])
        where = _parquet_place(paths[0])
    else:
        delimiter = "\t" if paths[0].suffix == ".tsv" else ","
        text, tables = TextTable.blocks(paths[0], delimiter, quoted=True, typed=False, only=only)
        empty, where, parts = text.columns, text.where, ()
    for name, kind in zip(names, hints, strict=True):
        if name is not None:
            null = " (null: rows are in time order)" if kind == "time" else ""
            named_column(empty, name, str(paths[0]), f"Name it with --{kind}_column{null}.")
    columns = BlockColumns(*names, time_expected=TIME, rating_expected="a rating as a number", convert=_convert)
    items = _read_items(paths[1], options) if len(paths) > 1 else None
    return InteractionBlocks(paths[0], paths[-1], columns, tables, where, items, parts=parts)


def _read_items(path: Path, options: Options) -> pa.Table:
    """Read the catalogue: item_id and the columns of texts.

    Raises:
        UserError: as `read`.
    """
    table, where = _read(path)
    _check_types(table.schema, (options.item_column, *TEXT_COLUMNS), path)
    known = need_column(table, options.item_column, str(path), "Name it with --item_column.")
    check_ids(known, "item", where, unique=True)
    columns = [name for name in TEXT_COLUMNS if name in table.column_names]
    if not columns:
        raise UserError(f"{path}: expected a column of texts ({', '.join(TEXT_COLUMNS)}), found none.")
    items = pa.table({"item_id": known} | {name: need_column(table, name, "").fill_null("") for name in columns})
    check_texts(items, where, options.empty_text)
    return items


def _read(path: Path, only: list[str] | None = None, ids: Sequence[str] = ()) -> tuple[pa.Table, Callable[[int], str]]:
    """Read a table; returns it and a function row -> place for messages. `only` and `ids` as for TextTable."""
    if path.suffix == ".parquet":
        return _read_parquet(path, only, ids), _parquet_place(path)
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


def _parquet_place(path: Path) -> Callable[[int], str]:
    return lambda row: f"{path} row {row}"


def _open_parquet(path: Path, only: Sequence[str] | None, ids: Sequence[str], **how: int) -> pq.ParquetFile:
    file = pq.ParquetFile(path, **how)
    _check_types(file.schema_arrow, ids, path)
    _check_types(pa.schema([(name, pa.null()) for name in file.schema_arrow.names]), only or (), path)
    return file


def _parquet_blocks(
    path: Path, only: Sequence[str], ids: Sequence[str]
) -> tuple[pa.Table, Iterator[pa.Table], tuple[Part, ...]]:
    """Open a parquet file; returns a table without rows, its rows in blocks, and in parts."""
    try:
        file = _open_parquet(path, only, ids, **LITTLE_MEMORY)
    except (pa.ArrowException, OSError, ValueError):
        return read_parquet(path, ()), iter(()), ()  # raises the message
    return file.schema_arrow.empty_table(), _parquet_tables(file, path, only), _parquet_parts(file, path, only)


def _parquet_tables(
    file: pq.ParquetFile, path: Path, only: Sequence[str], row_groups: Sequence[int] | None = None
) -> Iterator[pa.Table]:
    """Read all row groups, or some, in blocks."""
    batches = file.iter_batches(PARQUET_BLOCK, row_groups=row_groups, columns=list(only))
    while True:
        try:
            batch = _checked(pa.table(next(batches)))
        except StopIteration:
            return
        except (pa.ArrowException, OSError, ValueError) as error:
            raise unreadable(path, error) from None
        yield batch


def _parquet_parts(file: pq.ParquetFile, path: Path, only: Sequence[str]) -> tuple[Part, ...]:
    """Divide the row groups of a file into parts of a block's rows; a row group is never divided."""
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    read = partial(_read_part, path, path.resolve(), path.stat().st_size, tuple(only))
    parts, groups, first_row, n_rows = [], [], 0, 0
    for number, size in enumerate(sizes):
        groups.append(number)
        n_rows += size
        if n_rows >= PARQUET_BLOCK or (n_rows and number == len(sizes) - 1):
            parts.append(Part(first_row, partial(read, tuple(groups))))
            groups, first_row, n_rows = [], first_row + n_rows, 0
    return tuple(parts)


def _read_part(
    path: Path, place: Path, size: int, only: tuple[str, ...], row_groups: tuple[int, ...]
) -> Iterator[pa.Table]:
    """Read row groups in whatever process.

    Args:
        path: of the file, for messages.
        place: where it is, from any working folder.
        size: its bytes where the command was started.
        only: the columns.
        row_groups: their numbers.

    Raises:
        UserError: this machine has no such file, or another one; or it is damaged.
    """
    try:
        there = place.stat().st_size
    except OSError as error:
        raise UserError(
            f"{socket.gethostname()} cannot read {place} ({error.strerror}). Put it on a disk that all nodes share, or "
            "copy it to each of them, under the same path."
        ) from None
    if there != size:
        raise UserError(
            f"{place} is another file on {socket.gethostname()} ({there:,} bytes) than where the command was started "
            f"({size:,} bytes). Copy it to all nodes, or put it on a disk that they share."
        )
    try:
        file = pq.ParquetFile(place, **LITTLE_MEMORY)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable(path, error) from None
    yield from _parquet_tables(file, path, only, row_groups)


def _read_parquet(path: Path, only: list[str] | None, ids: Sequence[str]) -> pa.Table:
    try:
        file = _open_parquet(path, only, ids)
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
