"""Ids to numbers: columns of strings become dictionaries, in which every id appears once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.runtime.errors import UserError

MERGE_ROWS = 1 << 22  # merge dictionaries after this many rows: memory grows with distinct ids, not their repetitions


def numbered(column: pa.Array | pa.ChunkedArray) -> pa.DictionaryArray:
    """Number ids: a dictionary of strings in order of first appearance, without ids that no row uses."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    indices, ids = encoded.indices, encoded.dictionary.cast(pa.string())
    # the writer of the file may have sorted its dictionary, or left unused ids in it
    codes = indices.fill_null(len(ids)).to_numpy(zero_copy_only=False) if indices.null_count else indices.to_numpy()
    first = np.full(len(ids) + 1, len(codes))
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # of several assignments numpy keeps the last
    order = np.argsort(first[:-1], kind="stable")
    order = order[first[order] < len(codes)]
    if len(order) == len(ids) and (order == np.arange(len(ids))).all():
        return pa.DictionaryArray.from_arrays(indices.cast(pa.int32()), ids)
    number = np.full(len(ids) + 1, -1, dtype=np.int32)
    number[order] = np.arange(len(order))
    missing = number[codes] < 0
    return pa.DictionaryArray.from_arrays(pa.array(number[codes], mask=missing), ids.take(pa.array(order)))


def with_numbers(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Number (dictionary-encode) the id columns `names` of a table, where it has them."""
    for name in set(names) & set(table.column_names):
        table = table.set_column(table.column_names.index(name), name, table[name].dictionary_encode())
    return table


def merged(tables: Iterable[pa.Table], empty: pa.Table) -> pa.Table:
    """Concatenate tables with numbered ids; `empty` if there are none."""
    parts: list[pa.Table] = []
    waiting = 0
    for table in tables:
        parts.append(table)
        waiting += len(table)
        if waiting >= MERGE_ROWS:
            parts, waiting = [pa.concat_tables(parts).unify_dictionaries().combine_chunks()], 0
    return pa.concat_tables(parts) if parts else empty


def is_blank(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Mark strings that are null, empty or white space [n]."""
    return pc.equal(pc.utf8_trim_whitespace(pc.fill_null(column, "")), "").to_numpy(zero_copy_only=False)


def check_ids(ids: pa.Array, noun: str, where: Callable[[int], str], unique: bool) -> None:
    """Refuse blank ids and, if `unique`, repeated ones.

    Args:
        ids: strings [n].
        noun: what the ids name, for the message.
        where: row -> place in a file, for the message.
        unique: whether every id must appear once.

    Raises:
        UserError: names the place of the first such id.
    """
    ids = ids if isinstance(ids, pa.DictionaryArray) else numbered(ids)
    blank = np.flatnonzero(is_blank(ids.dictionary))
    if ids.null_count or len(blank):
        rows = np.flatnonzero(np.isin(ids.indices.fill_null(-1).to_numpy(zero_copy_only=False), [-1, *blank]))
        raise UserError(f"{where(int(rows[0]))}: expected {noun} id, got nothing. Mend or remove the line.")
    if unique and len(ids.dictionary) < len(ids):
        again = np.ones(len(ids), dtype=bool)
        again[np.unique(ids.indices.to_numpy(), return_index=True)[1]] = False
        row = int(np.argmax(again))
        raise UserError(
            f"{where(row)}: duplicate {noun} id {ids[row].as_py()!r} ({again.sum()} such lines); every {noun} must "
            "appear once. Remove the duplicates."
        )


def number_items(named: pa.Array, known: pa.Array, where: Callable[[int], str], catalogue: str) -> np.ndarray:
    """Look up the item numbers of the interactions' item ids [n].

    Args:
        named: ids as the interactions name them [n].
        known: ids in the order of the catalogue.
        where: index into `named` -> place in a file, for the message.
        catalogue: where the known ids come from, for the message.

    Raises:
        UserError: names the first id that is not in the catalogue, and counts them.
    """
    named = named if isinstance(named, pa.DictionaryArray) else numbered(named)
    number = pc.index_in(named.dictionary, value_set=known).fill_null(-1).to_numpy(zero_copy_only=False)
    numbers = number[named.indices.to_numpy()]
    unknown = np.flatnonzero(numbers < 0)
    if len(unknown):
        row = int(unknown[0])
        raise unknown_item(where(row), named[row].as_py(), len(known), catalogue, len(unknown))
    return numbers


def unknown_item(place: str, item: str, n_items: int, catalogue: str, count: int) -> UserError:
    """Make the error that names the first of `count` interactions with an item that the catalogue does not have."""
    return UserError(
        f"{place}: unknown item {item!r}: expected one of the {n_items} items of {catalogue} "
        f"({count} such interactions). Add the items or remove the interactions."
    )
