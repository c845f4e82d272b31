"""MovieLens as it is downloaded: 100K (u.data, u.item), 1M and 10M (ratings.dat, movies.dat), 20M to 32M (csv).

Titles and genres are the items' texts. Films without ratings are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from distill.data.sources.base import Options, Source, check_ratings, check_texts, group
from distill.data.sources.columns import need_column, need_ids, to_numbers
from distill.data.sources.numbering import check_ids, number_items
from distill.data.sources.text_table import TextTable
from distill.runtime.errors import UserError

SHAPES = (("u.data", "u.item"), ("ratings.dat", "movies.dat"), ("ratings.csv", "movies.csv"))
GENRES = (  # the flags of u.item, as u.genre has them
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
RATINGS = ["userId", "movieId", "rating", "timestamp"]
SEPARATOR = b"\x1f"  # between fields for the parser, which takes single characters only
DELIMITERS = {"u.data": "\t", "u.item": "|", "ratings.dat": "::", "movies.dat": "::"}


def files(folder: Path, options: Options) -> list[Path]:
    """List the files of ratings and films.

    Raises:
        UserError: no folder, or none of the pairs in it.
    """
    if not folder.is_dir():
        raise UserError(f"No folder {folder}: expected one that holds ratings and films. Name it with --input.")
    for ratings, films in SHAPES:
        if (folder / ratings).is_file():
            if not (folder / films).is_file():
                raise UserError(f"{folder}: missing file {films} beside {ratings}.")
            return [folder / ratings, folder / films]
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    expected = ", ".join(ratings for ratings, _ in SHAPES)
    raise UserError(f"{folder}: expected one of {expected}; found {present}. Check --input.")


def read(folder: Path, options: Options) -> Source:
    """Read ratings and films.

    Raises:
        UserError: as `files`; malformed lines, duplicate or unknown films, films without a title.
    """
    ratings, films = files(folder, options)
    rows, where = _table(ratings, RATINGS)
    users, named = (need_ids(rows, name, f"{ratings}:1") for name in RATINGS[:2])
    check_ids(users, "user", where, unique=False)
    check_ids(named, "film", where, unique=False)
    times, stars = (
        to_numbers(need_column(rows, name, f"{ratings}:1"), where, f"a number as {name}")
        for name in ("timestamp", "rating")
    )
    check_ratings(stars, where)
    table, film_where = _table(films, ["movieId", "title", "genres"])
    known = need_column(table, "movieId", f"{films}:1")
    check_ids(known, "film", film_where, unique=True)
    numbers = number_items(named, known, where, str(films))
    kept, values = np.unique(numbers, return_inverse=True)
    title, genres = (need_column(table, name, f"{films}:1").take(pa.array(kept)) for name in ("title", "genres"))
    genres = pc.replace_substring(pc.if_else(pc.equal(genres, "(no genres listed)"), "", genres), "|", ", ")
    items = pa.table({"item_id": known.take(pa.array(kept)), "title": title, "categories": genres})
    check_texts(items, lambda item: film_where(int(kept[item])), options.empty_text)
    return group(items, users, values, times, stars, str(ratings), where)


def _table(path: Path, names: list[str]) -> tuple[pa.Table, Callable[[int], str]]:
    """Read columns of these names as strings; returns them and a function row -> place for messages."""
    if path.suffix == ".csv":
        table = TextTable.read(path, ",", quoted=True, only=names, ids=[name for name in RATINGS[:2] if name in names])
        return table.columns, table.where
    width = 5 + len(GENRES) if path.name == "u.item" else len(names)
    text, delimiter = path.read_bytes(), DELIMITERS[path.name].encode()
    try:
        text.decode()
    except UnicodeDecodeError:  # the older ones are latin-1
        text = text.decode("latin-1").encode()
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if SEPARATOR in line:
            raise UserError(f"{path}:{number}: holds the control character 0x1f, which is no text. Remove it.")
        if line.count(delimiter) != width - 1:
            raise UserError(
                f"{path}:{number}: malformed or cut off: expected {width} fields, got {line.count(delimiter) + 1}: "
                f"{line[:80].decode(errors='replace')!r}. Mend or remove the line."
            )
    if not text.strip():
        raise UserError(f"{path}: expected lines of {width} fields, found none.")
    columns = [str(number) for number in range(width)]
    table = pacsv.read_csv(
        pa.BufferReader(text.replace(delimiter, SEPARATOR)),
        pacsv.ReadOptions(column_names=columns),
        pacsv.ParseOptions(delimiter=SEPARATOR.decode(), quote_char=False),
        pacsv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False),
    )
    if path.name == "u.item":
        flags = np.stack([table[number].to_numpy() == "1" for number in columns[5:]], axis=1)
        genres = ["|".join(genre for genre, has in zip(GENRES, row, strict=True) if has) for row in flags]
        table = table.select(columns[:2]).append_column("2", pa.array(genres, pa.string()))
    return table.rename_columns(names), lambda row: f"{path}:{row + 1}"
