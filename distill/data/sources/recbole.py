"""RecBole's atomic files, in two shapes.

Split: `NAME.test.inter` (user_id, item_id_list, item_id), where a user's full sequence is the test line's history and
its target; `NAME.item2index` (item id, number; the interactions name numbers) and `NAME.text` (item_id, text) may lie
beside it. Plain: `NAME.inter` (user_id, item_id, timestamp) with an optional `NAME.item`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.data.sources.base import Options, Source, check_ratings, check_texts, find_file, group
from distill.data.sources.blocks import BlockColumns, InteractionBlocks
from distill.data.sources.columns import floats, named_column, need_column, need_ids, to_numbers
from distill.data.sources.numbering import check_ids, number_items
from distill.data.sources.text_table import TextTable, dense_catalogue
from distill.runtime.errors import UserError
from distill.runtime.logs import log

WITHOUT_TIMES = "{}: no column timestamp; its lines are taken to be in time order"
SPLITS = (".train.inter", ".valid.inter", ".test.inter")
COLUMNS = {  # column names that RecBole's data sets use for each text
    "title": ("title", "item_name", "name", "product_title", "movie_title"),
    "description": ("description",),
    "brand": ("brand", "store"),
    "categories": ("categories", "category", "class", "genre", "genres"),
}


def files(folder: Path, options: Options) -> list[Path]:
    """List the files that `read` would read.

    Raises:
        UserError: no folder, no interactions, or several data sets in one folder.
    """
    is_split = folder.is_dir() and any(any(folder.glob("*" + ending)) for ending in SPLITS)
    if is_split:
        paths = [find_file(folder, "*.test.inter")]
        paths += [find_file(folder, pattern, needed=False) for pattern in ("*.item2index", "*.text")]
    else:
        paths = [find_file(folder, "*.inter"), find_file(folder, "*.item", needed=False)]
    return [path for path in paths if path]


def read(folder: Path, options: Options) -> Source:
    """Read a folder of either shape.

    Raises:
        UserError: as `files`; malformed lines, missing columns, duplicates, unknown items, items without text.
    """
    paths = {path.suffix: path for path in files(folder, options)}
    if paths[".inter"].name.endswith(".test.inter"):
        return _read_split(paths, TextTable.read(paths[".inter"], typed=True), options)
    return _read_plain(paths, options)


def _read_split(paths: dict[str, Path], inter: TextTable, options: Options) -> Source:
    users, history, target = (
        need_column(inter.columns, name, f"{inter.path}:1") for name in ("user_id", "item_id_list", "item_id")
    )
    check_ids(users, "user", inter.where, unique=True)
    check_ids(target, "item", inter.where, unique=False)
    # An empty history leaves a blank in front; trimming removes it.
    tokens = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pc.binary_join_element_wise(history, target, " ")))
    flat = tokens.flatten()
    ends = np.cumsum(tokens.value_lengths().to_numpy(zero_copy_only=False))

    def where(position: int) -> str:
        return inter.where(int(np.searchsorted(ends, position, side="right")))

    if ".item2index" in paths:
        ids = dense_catalogue(TextTable.read(paths[".item2index"], names=("item", "number")))
        known = pa.array([str(number) for number in range(len(ids))], pa.string())
        catalogue = paths[".item2index"]
    elif ".text" in paths:
        catalogue = paths[".text"]
        ids = known = need_column(TextTable.read(catalogue, typed=True).columns, "item_id", f"{catalogue}:1")
    else:
        catalogue = inter.path
        ids = known = flat.unique()
    values = number_items(flat, known, where, str(catalogue))
    items = {"item_id": ids}
    if ".text" in paths:
        items |= _texts(TextTable.read(paths[".text"], typed=True), ids, options)
    return Source(pa.table(items), users, values, np.concatenate([[0], ends]), origin=str(inter.path))


def _texts(texts: TextTable, ids: pa.Array, options: Options) -> dict[str, pa.Array]:
    """Read the text columns in the order of `ids`; texts of other items are left out."""
    named = need_column(texts.columns, "item_id", f"{texts.path}:1")
    check_ids(named, "item", texts.where, unique=True)
    rows = pc.index_in(ids, value_set=named)
    text = need_column(texts.columns, "text", f"{texts.path}:1").take(rows).fill_null("")

    def where(item: int) -> str:
        return texts.where(rows[item].as_py()) if rows[item].is_valid else str(texts.path)

    check_texts(pa.table({"item_id": ids, "title": text}), where, options.empty_text)
    parts = [_split_text(line) for line in text.to_pylist()]
    names = ("title", "categories", "brand")
    return {name: pa.array(column, pa.string()) for name, column in zip(names, zip(*parts, strict=True), strict=True)}


def _split_text(text: str) -> tuple[str, str, str]:
    """Split `title. categories. brand. `, the form of these files; any other text is the title."""
    parts = text.rsplit(". ", 3)
    if len(parts) == 4 and not parts[3].strip():
        return parts[0].strip(), parts[1].strip(), parts[2].strip()
    return text.strip(), "", ""


def _read_plain(paths: dict[str, Path], options: Options) -> Source:
    needed = ["user_id", "item_id", "timestamp"] + ([options.rating_column] if options.min_rating is not None else [])
    inter = TextTable.read(paths[".inter"], typed=True, only=needed, ids=needed[:2])
    users, named = (need_ids(inter.columns, name, f"{inter.path}:1") for name in ("user_id", "item_id"))
    check_ids(users, "user", inter.where, unique=False)
    check_ids(named, "item", inter.where, unique=False)
    times = ratings = None
    if "timestamp" in inter.columns.column_names:
        times = to_numbers(inter.columns["timestamp"], inter.where, "a timestamp in seconds")
    else:
        log.info(WITHOUT_TIMES.format(inter.path))
    if options.min_rating is not None:
        hint = "Name it with --rating_column."
        column = need_column(inter.columns, options.rating_column, f"{inter.path}:1", hint)
        ratings = to_numbers(column, inter.where, "a rating")
        check_ratings(ratings, inter.where)
    if ".item" not in paths:
        items = pa.table({"item_id": named.dictionary})
        return group(items, users, named.indices.to_numpy(), times, ratings, str(inter.path), inter.where)
    table = TextTable.read(paths[".item"], typed=True)
    known = _known_items(table)
    numbers = number_items(named, known, inter.where, str(table.path))
    kept, values = np.unique(numbers, return_inverse=True)
    items = _items_with_interactions(table, kept, options)
    return group(items, users, values, times, ratings, str(inter.path), inter.where)


def read_blocks(folder: Path, options: Options) -> InteractionBlocks:
    """Open a folder of the plain shape, to read the interactions block by block.

    Raises:
        UserError: as `read`; the files are of the split shape, whose lines hold whole histories.
    """
    paths = {path.suffix: path for path in files(folder, options)}
    if paths[".inter"].name.endswith(".test.inter"):
        raise UserError(
            f"{paths['.inter']}: the engines duckdb and ray read NAME.inter with one interaction a line, not split "
            "files. Use --engine memory."
        )
    rating = options.rating_column if options.min_rating is not None else None
    only = ["user_id", "item_id", "timestamp"] + ([rating] if rating else [])
    inter, tables = TextTable.blocks(paths[".inter"], "\t", quoted=False, typed=True, only=only)
    for name in only[:2]:
        named_column(inter.columns, name, f"{inter.path}:1")
    if rating:
        named_column(inter.columns, rating, f"{inter.path}:1", "Name it with --rating_column.")
    has_times = "timestamp" in inter.columns.column_names
    if not has_times:
        log.info(WITHOUT_TIMES.format(inter.path))
    columns = BlockColumns(
        *only[:2], "timestamp" if has_times else None, rating, "a timestamp in seconds", "a rating", floats
    )
    if ".item" not in paths:
        return InteractionBlocks(inter.path, inter.path, columns, tables, inter.where)
    table = TextTable.read(paths[".item"], typed=True)
    items = pa.table({"item_id": _known_items(table)})
    return InteractionBlocks(
        inter.path,
        table.path,
        columns,
        tables,
        inter.where,
        items,
        lambda kept: _items_with_interactions(table, kept, options),
    )


def _known_items(table: TextTable) -> pa.Array:
    known = need_column(table.columns, "item_id", f"{table.path}:1")
    check_ids(known, "item", table.where, unique=True)
    return known


def _items_with_interactions(table: TextTable, kept: np.ndarray, options: Options) -> pa.Table:
    """Build the catalogue: these files often describe a whole shop, so it keeps only the rows `kept` (ascending)."""
    items = {"item_id": table.columns["item_id"].combine_chunks().take(pa.array(kept))}
    for name, aliases in COLUMNS.items():
        column = next((alias for alias in aliases if alias in table.columns.column_names), None)
        if column:
            items[name] = table.columns[column].combine_chunks().take(pa.array(kept))
    if len(items) > 1:
        check_texts(pa.table(items), lambda item: table.where(int(kept[item])), options.empty_text)
    return pa.table(items)
