"""Amazon reviews of 2014, 2018 and 2023 as they are downloaded, with or without the metadata beside them.

Reviews: `NAME.json` or `NAME.jsonl`, also gzipped (reviewerID, asin, unixReviewTime, overall; of 2023 user_id,
parent_asin, timestamp in milliseconds, rating), or the `NAME.csv` of 2023 with these columns. Metadata:
`meta_NAME.json` or `.jsonl`, also gzipped (asin or parent_asin, title, description, brand or store, categories).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.data.sources.base import Options, Source, check_texts, group
from distill.data.sources.columns import need_column, need_ids
from distill.data.sources.json_lines import MalformedError, blocks, identifier, plain, read_tables
from distill.data.sources.numbering import check_ids, is_blank, merged, numbered, with_numbers
from distill.data.sources.refine import refine
from distill.data.sources.text_table import TextTable
from distill.runtime.errors import UserError

FIRST_FIELD = re.compile(rb"\s*\{'asin': '([^']*)'")  # how the lines of 2014's metadata begin
ENDING = re.compile(r"\.(jsonl?|csv)(\.gz)?$")
USER, ITEM, TIME, RATING = (
    ("user_id", "reviewerID"),
    ("parent_asin", "asin"),
    ("timestamp", "unixReviewTime"),
    ("rating", "overall"),
)
REVIEWS = pa.schema(
    [(name, pa.string()) for name in (*USER, *ITEM)]
    + [(name, pa.int64()) for name in TIME]
    + [(name, pa.float32()) for name in RATING]
)
WORDS = pa.list_(pa.string())
METADATA = pa.schema(
    [(name, pa.string()) for name in (*ITEM, "title", "brand", "store")]
    + [(name, WORDS) for name in ("description", "category", "categories")]
)


def files(folder: Path, options: Options) -> list[Path]:
    """List the file of reviews and, if there is one, the file of metadata.

    Args:
        folder: holds one data set; or is its file of reviews.
        options: not used.

    Raises:
        UserError: no such folder, no reviews, or several data sets in one folder.
    """
    given = folder if folder.is_file() else None
    folder = folder.parent if given else folder
    if not folder.is_dir():
        raise UserError(f"No folder {folder}: expected one that holds reviews. Name it with --input.")
    candidates = sorted(path for path in folder.iterdir() if ENDING.search(path.name))
    metadata = [path for path in candidates if path.name.startswith("meta_")]
    reviews = [given] if given else [path for path in candidates if path not in metadata]
    if len(reviews) != 1 or len(metadata) > 1:
        names = ", ".join(path.name for path in candidates)
        names = names or "nothing that ends in .json, .jsonl, .csv (or these with .gz)"
        raise UserError(
            f"{folder}: expected one file of reviews and at most one meta_NAME, found {names}. Move the others away, "
            "or name the file of reviews itself with --input."
        )
    return reviews + metadata


def read(folder: Path, options: Options) -> Source:
    """Read reviews and metadata; `refine` is applied before the metadata are looked up, which saves work.

    Raises:
        UserError: as `files`; cut-off files, too many malformed lines, reviews without metadata, items without text.
    """
    reviews, *metadata = files(folder, options)
    if ".csv" in reviews.suffixes:
        rows, where = _csv(reviews)
    else:
        rows, where = _json(reviews, options.max_bad_lines), None  # its lines have been checked
    users, named = numbered(rows["user"]), numbered(rows["item"])
    items, numbers = pa.table({"item_id": named.dictionary}), named.indices.to_numpy()
    source = group(items, users, numbers, rows["time"].to_numpy(), rows["rating"].to_numpy(), str(reviews), where)
    if not len(source.values):
        raise UserError(f"{reviews}: expected reviews, found none.")
    source = refine(source, options)
    return replace(source, items=_with_texts(source.items, metadata[0], options)) if metadata else source


def _json(path: Path, max_bad_lines: int) -> pa.Table:
    tables = read_tables(path, REVIEWS, _select_review, _review_row, max_bad_lines)
    return merged(tables, _select_review(REVIEWS.empty_table()))


def _select_review(table: pa.Table) -> pa.Table | None:
    """Select user, item, time in seconds and rating; None if a review lacks one of the first three."""
    user, item = (pc.coalesce(*(table[name] for name in names)) for names in (USER, ITEM))
    milliseconds, seconds = (table[name].cast(pa.float64()) for name in TIME)
    time = pc.coalesce(seconds, pc.divide(milliseconds, 1000))
    if user.null_count or item.null_count or time.null_count:
        return None
    rating = pc.coalesce(*(table[name] for name in RATING)).fill_null(np.nan)
    reviews = with_numbers(pa.table({"user": user, "item": item, "time": time, "rating": rating}), ("user", "item"))
    ids = (chunk.dictionary for name in ("user", "item") for chunk in reviews[name].chunks)
    return None if any(is_blank(part).any() for part in ids) else reviews


def _review_row(line: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for names, kind in ((USER, None), (ITEM, None), (TIME, _whole), (RATING, _number)):
        name = next((name for name in names if line.get(name) not in (None, "")), None)
        if name is None and names != RATING:
            raise MalformedError(
                f"expected a review with {' or '.join(names)}, got the fields {', '.join(line) or 'none'}"
            )
        if kind is None:
            row[name] = identifier(line[name], name)
            continue
        try:
            row[name or RATING[0]] = kind(line[name]) if name else None
        except (TypeError, ValueError, OverflowError):
            raise MalformedError(f"expected a number as {name}, got {line[name]!r}") from None
    return row


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError(value)
    return float(value)


def _whole(value: Any) -> int:
    number = int(_number(value))
    if abs(number) >= 2**53:  # no float64 can hold it exactly
        raise ValueError(value)
    return number


def _csv(path: Path) -> tuple[pa.Table, Callable[[int], str]]:
    """Read reviews of 2023; returns them and a function row -> place for messages."""
    names = [USER[0], ITEM[0], RATING[0], TIME[0]]
    try:
        table = TextTable.read(path, ",", quoted=True, only=names, ids=names[:2])
    except (EOFError, OSError):
        for _ in blocks(path):  # raises a message that says how far the file can be read
            pass
        raise
    hint = "Expected the columns of the 2023 files; name other tables with --format table."
    columns = {name: need_column(table.columns, name, f"{path}:1", hint) for name in names[2:]}
    numbers = {}
    for name, column in columns.items():
        try:
            numbers[name] = column.cast(pa.float64())
        except pa.ArrowInvalid as error:
            raise UserError(f"{path}: expected numbers as {name} ({error}). Mend or remove the line.") from None
    user, item = (need_ids(table.columns, name, f"{path}:1", hint) for name in names[:2])
    check_ids(user, "user", table.where, unique=False)
    check_ids(item, "item", table.where, unique=False)
    time = pc.divide(numbers[TIME[0]], 1000)
    return pa.table({"user": user, "item": item, "time": time, "rating": numbers[RATING[0]]}), table.where


def _with_texts(items: pa.Table, path: Path, options: Options) -> pa.Table:
    """Add the texts to the catalogue; of several metadata of an item the first is used."""
    wanted = items["item_id"].combine_chunks()

    def select(table: pa.Table) -> pa.Table | None:
        ids = pc.coalesce(*(table[name] for name in ITEM))
        if ids.null_count:
            return None
        is_wanted = pc.is_in(ids, wanted)
        table, ids = table.filter(is_wanted), ids.filter(is_wanted)
        title = pc.fill_null(table["title"], "")
        title = pc.if_else(pc.match_substring(title, "getTime"), "", title)  # 2018: fragments of page scripts
        categories = pc.coalesce(table["categories"], table["category"])
        columns = {"item_id": ids, "title": title, "description": pc.binary_join(table["description"], " ")}
        columns |= {
            "brand": pc.coalesce(table["brand"], table["store"]),
            "categories": pc.binary_join(categories, ", "),
        }
        return pa.table({name: pc.fill_null(column, "") for name, column in columns.items()})

    known = {item.encode() for item in wanted.to_pylist()}

    def skip(line: bytes) -> bool:  # Python literals are slow to parse: skip items that are not wanted
        item = FIRST_FIELD.match(line)
        return item is not None and item[1] not in known

    tables = list(read_tables(path, METADATA, select, _metadata_row, options.max_bad_lines, skip))
    if not tables:
        raise UserError(f"{path}: expected metadata of items, found none. Leave the file out to go on without texts.")
    metadata = pa.concat_tables(tables)
    rows = pc.index_in(wanted, value_set=metadata["item_id"].combine_chunks())
    if rows.null_count and options.empty_text == "error":
        first = wanted[int(np.argmax(rows.is_null().to_numpy(zero_copy_only=False)))]
        raise UserError(
            f"{path}: no metadata for {rows.null_count:,} of the {len(wanted):,} items reviewed, first {first}. "
            "Go on without their texts: --empty_text keep; or without these items: --empty_text drop."
        )
    texts = metadata.drop(["item_id"]).take(rows)
    result = items
    for name in texts.column_names:
        result = result.append_column(name, texts[name].fill_null(""))
    check_texts(result, lambda row: str(path), options.empty_text)
    return result


def _metadata_row(line: dict[str, Any]) -> dict[str, Any]:
    row = {name: identifier(line[name], name) for name in ITEM if line.get(name)}
    if not row:
        raise MalformedError(f"expected metadata with {' or '.join(ITEM)}, got the fields {', '.join(line) or 'none'}")
    row |= {name: " ".join(_words(line.get(name))) for name in ("title", "brand", "store") if line.get(name)}
    return row | {name: _words(line[name]) for name in ("description", "category", "categories") if line.get(name)}


def _words(value: Any) -> list[str]:
    """Flatten strings, lists of strings and lists of lists to the distinct strings, in order."""
    if isinstance(value, list | tuple):
        return list(dict.fromkeys(word for part in value for word in _words(part)))
    return [plain(value)] if value not in (None, "") else []
