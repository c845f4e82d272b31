"""Readers of outside formats: each module has `files(folder, options)` and `read(folder, options) -> Source`.

Readers take columns, not rows: ids become numbers as they are read, so that what is held is a few bytes an interaction.
"""

from __future__ import annotations

import csv
import gzip
import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from distill.data.dataset import TEXT_COLUMNS
from distill.runtime.config import suggest
from distill.runtime.errors import UserError

FORMATS = {
    "demo": "distill.data.sources.demo",
    "recbole": "distill.data.sources.recbole",
    "lcrec": "distill.data.sources.lcrec",
    "table": "distill.data.sources.table",
    "amazon": "distill.data.sources.amazon",
    "movielens": "distill.data.sources.movielens",
}
DEFAULTS = {"amazon": {"k_core": 5, "duplicates": "first", "clean_html": True}}  # raw reviews; others come prepared
CSV_BLOCK = 1 << 24  # bytes; ids are numbered block by block
MERGE_ROWS = 1 << 22  # and anew after so many rows: what is held grows with the ids, not with their repetitions


@dataclass(frozen=True)
class Options:
    """What readers may be told; each takes what concerns it.

    Attributes:
        seed: of the demo's shop and users.
        users: how many users the demo has.
        empty_text: refuse items without text where the source has texts, keep them, or drop them.
        user_column, item_column, time_column: names in tables; no time column means that rows are in time order.
        rating_column: the same; only `min_rating` asks for it.
        min_rating: leave out interactions rated lower.
        duplicates: keep repeated interactions; or leave out "exact" ones (user, item and time agree); or all but the
            "first" of a user with an item.
        user_core, item_core: leave out users and items with fewer interactions, until nothing changes.
        clean_html: take tags and entities out of the texts.
        max_bad_lines: lines that may be left out as malformed before reading stops (JSON lines).
    """

    seed: int = 0
    users: int = 2000
    empty_text: Literal["error", "keep", "drop"] = "error"
    user_column: str = "user_id"
    item_column: str = "item_id"
    time_column: str | None = "timestamp"
    rating_column: str = "rating"
    min_rating: float | None = None
    duplicates: Literal["keep", "exact", "first"] = "keep"
    user_core: int = 0
    item_core: int = 0
    clean_html: bool = False
    max_bad_lines: int = 10


@dataclass(frozen=True)
class Source:
    """What a reader found; sequence u is `values[offsets[u]:offsets[u + 1]]`.

    Attributes:
        items: item_id and any of title, description, brand, categories (strings); row = item number.
        user_ids: strings, one a user.
        values: item numbers of all users, one user after the other, each in time order [n].
        offsets: where each user starts [users + 1].
        times: seconds since 1970 [n], or None where the format has none.
        ratings: [n], or None where nobody asked for them.
        origin: where the interactions come from, for messages.
        extra_files: writes further files of the data set into the folder it is given.
    """

    items: pa.Table
    user_ids: pa.Array
    values: np.ndarray
    offsets: np.ndarray
    times: np.ndarray | None = None
    ratings: np.ndarray | None = None
    origin: str = ""
    extra_files: Callable[[Path], None] | None = None

    @property
    def lengths(self) -> np.ndarray:
        """How many interactions each user has [users]."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """The user of each interaction [n]."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int32), self.lengths)

    def take(self, rows: np.ndarray) -> Source:
        """Only these interactions (ascending numbers); users who keep none are left out."""
        counts = np.bincount(self.owners[rows], minlength=len(self.lengths))
        users = np.flatnonzero(counts)
        return replace(
            self,
            user_ids=self.user_ids.take(pa.array(users)),
            values=self.values[rows],
            offsets=np.concatenate([[0], np.cumsum(counts[users])]),
            times=None if self.times is None else self.times[rows],
            ratings=None if self.ratings is None else self.ratings[rows],
        )

    def take_items(self, kept: np.ndarray) -> Source:
        """A catalogue of these items (ascending numbers), which must hold all that are bought."""
        number = np.full(self.items.num_rows, -1)
        number[kept] = np.arange(len(kept))
        return replace(self, items=self.items.take(pa.array(kept)), values=number[self.values])


def reader(name: str) -> ModuleType:
    """The module that reads format `name`, a key of FORMATS."""
    return importlib.import_module(FORMATS[name])


def without_text(items: pa.Table) -> np.ndarray:
    """Whether all of an item's text columns are blank [n_items]; nobody's where the catalogue has no such columns."""
    names = set(TEXT_COLUMNS) & set(items.column_names)
    blank = np.full(items.num_rows, bool(names))
    for name in names:
        blank &= _is_blank(items[name])
    return blank


def check_texts(items: pa.Table, where: Callable[[int], str], empty_text: Literal["error", "keep", "drop"]) -> None:
    """Refuse items all of whose text columns are blank.

    Args:
        items: the catalogue; has at least one text column.
        where: row of the catalogue -> place in a file, for the message.
        empty_text: "keep" and "drop" accept everything here.

    Raises:
        UserError: names the first such item and counts them.
    """
    if empty_text != "error":
        return
    rows = np.flatnonzero(without_text(items))
    if len(rows):
        first = int(rows[0])
        raise UserError(
            f"{where(first)}: expected a text for every item, found none for item "
            f"{items['item_id'][first].as_py()!r} ({len(rows)} such items). "
            "Add the texts, or go on without them: --empty_text keep (or drop, which leaves such items out)."
        )


@dataclass(frozen=True)
class TextTable:
    """A delimited text file: its columns as strings, and the way back from a row to its line.

    Attributes:
        path: the file.
        columns: column names and strings, numbered (dictionary) where asked; missing values are empty strings.
        delimiter: between fields.
        quoted: whether fields may stand in double quotes.
        header: whether the first line names the columns.
    """

    path: Path
    columns: pa.Table
    delimiter: str
    quoted: bool
    header: bool

    @staticmethod
    def read(
        path: Path,
        delimiter: str = "\t",
        quoted: bool = False,
        names: Sequence[str] | None = None,
        typed: bool = False,
        only: Sequence[str] | None = None,
        ids: Sequence[str] = (),
    ) -> TextTable:
        """Read a file.

        Args:
            path: must exist.
            delimiter: between fields.
            quoted: fields may stand in double quotes, and then hold line ends.
            names: of the columns, if the file has no header.
            typed: header fields look like `user_id:token`, as in RecBole's files.
            only: the columns to keep; None, or one of them is missing: all, so that a message can name them.
            ids: columns that repeat themselves, to be numbered while reading.

        Raises:
            UserError: empty, a line with too few or too many fields, not UTF-8.
        """
        header = names is None
        if names is None:
            with _open(path) as file:
                names = next(csv.reader(file, **_dialect(delimiter, quoted)), [])
            names = [name.split(":")[0] if typed else name for name in (name.strip() for name in names)]
        if not any(names) or len(set(names)) < len(names):
            raise UserError(
                f"{path}:1: expected a header with distinct column names, got {', '.join(names) or 'none'}."
            )
        result = TextTable(path, pa.table({}), delimiter, quoted, header)
        kept = list(only if only is not None and set(only) <= set(names) else names)
        types = {name: pa.dictionary(pa.int32(), pa.string()) if name in ids else pa.string() for name in kept}
        try:
            columns = pacsv.read_csv(
                path,
                pacsv.ReadOptions(column_names=list(names), skip_rows=int(header), block_size=CSV_BLOCK),
                pacsv.ParseOptions(delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted),
                pacsv.ConvertOptions(column_types=types, include_columns=kept, strings_can_be_null=False),
            )
        except pa.ArrowInvalid as error:
            if path.stat().st_size == 0 or "Empty CSV" in str(error):
                columns = pa.table({name: pa.array([], kind) for name, kind in types.items()})
            else:
                raise UserError(result._explain(len(names), str(error))) from None
        return replace(result, columns=columns)

    def where(self, row: int) -> str:
        """File and line of a row, as `path:line`."""
        for number, (line, _) in enumerate(self._rows()):
            if number == row:
                return f"{self.path}:{line}"
        return str(self.path)

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """(line, fields) of each row; slow, for messages only."""
        with _open(self.path) as file:
            reader = csv.reader(file, **_dialect(self.delimiter, self.quoted))
            if self.header:
                next(reader, None)
            for fields in reader:
                if fields:
                    yield reader.line_num, fields

    def _explain(self, width: int, message: str) -> str:
        for line, fields in self._rows():
            if len(fields) != width:
                return (
                    f"{self.path}:{line}: malformed or cut off: expected {width} fields, got {len(fields)}: "
                    f"{self.delimiter.join(fields)[:80]!r}. Mend or remove the line."
                )
        return f"{self.path} cannot be read: {message.splitlines()[0]}. Expected UTF-8 text, {width} fields a line."


def named_column(columns: pa.Table, name: str, where: str, hint: str = "") -> pa.ChunkedArray:
    """A column as it is.

    Raises:
        UserError: there is none of this name.
    """
    if name not in columns.column_names:
        raise UserError(f"{where}: missing column {name!r}. {suggest(name, columns.column_names)} {hint}".rstrip())
    return columns[name]


def need_column(columns: pa.Table, name: str, where: str, hint: str = "") -> pa.Array:
    """A column as strings.

    Raises:
        UserError: there is none of this name.
    """
    column = named_column(columns, name, where, hint).combine_chunks()
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def need_ids(columns: pa.Table, name: str, where: str, hint: str = "") -> pa.DictionaryArray:
    """A column of ids, numbered: a dictionary of strings in which each stands once.

    Raises:
        UserError: there is none of this name.
    """
    return numbered(named_column(columns, name, where, hint))


def floats(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Numbers, perhaps as texts -> floats [n]; raises `pa.ArrowInvalid`."""
    return column.cast(pa.float64()).to_numpy()


def to_numbers(
    column: pa.Array | pa.ChunkedArray,
    where: Callable[[int], str],
    expected: str,
    convert: Callable[[Any], np.ndarray] = floats,
) -> np.ndarray:
    """A column as floats [n].

    Args:
        column: as it was read.
        where: row -> place in a file, for the message.
        expected: what should stand there, for the message.
        convert: raises `pa.ArrowInvalid` where it cannot.

    Raises:
        UserError: names the first row that cannot be converted.
    """
    try:
        return convert(column)
    except pa.ArrowInvalid:
        for row in range(len(column)):
            try:
                convert(column.slice(row, 1))
            except pa.ArrowInvalid:
                raise UserError(
                    f"{where(row)}: expected {expected}, got {column[row].as_py()!r}. Mend or remove the line."
                ) from None
        raise


def with_numbers(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The table with its columns of ids numbered (dictionaries)."""
    for name in set(names) & set(table.column_names):
        table = table.set_column(table.column_names.index(name), name, table[name].dictionary_encode())
    return table


def merged(tables: Iterable[pa.Table], empty: pa.Table) -> pa.Table:
    """Tables with numbered ids, one after the other, as one; `empty` if there are none."""
    done: list[pa.Table] = []
    waiting = 0
    for table in tables:
        done.append(table)
        waiting += len(table)
        if waiting >= MERGE_ROWS:
            done, waiting = [pa.concat_tables(done).unify_dictionaries().combine_chunks()], 0
    return pa.concat_tables(done) if done else empty


def numbered(column: pa.Array | pa.ChunkedArray) -> pa.DictionaryArray:
    """Ids -> a dictionary of strings, in order of first appearance."""
    whole = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.unify_dictionaries().combine_chunks()
    indices, ids = whole.indices, whole.dictionary.cast(pa.string())
    # what wrote the file may have sorted its dictionary, or left ids in it that no row names
    codes = indices.fill_null(len(ids)).to_numpy(zero_copy_only=False) if indices.null_count else indices.to_numpy()
    first = np.full(len(ids) + 1, len(codes))
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # of several assignments the last holds
    order = np.argsort(first[:-1], kind="stable")
    order = order[first[order] < len(codes)]
    if len(order) == len(ids) and (order == np.arange(len(ids))).all():
        return pa.DictionaryArray.from_arrays(indices.cast(pa.int32()), ids)
    number = np.full(len(ids) + 1, -1, dtype=np.int32)
    number[order] = np.arange(len(order))
    missing = number[codes] < 0
    return pa.DictionaryArray.from_arrays(pa.array(number[codes], mask=missing), ids.take(pa.array(order)))


def check_ids(ids: pa.Array, one: str, where: Callable[[int], str], unique: bool) -> None:
    """Refuse blank and, if `unique`, repeated ids.

    Raises:
        UserError: names the first one's place.
    """
    ids = ids if isinstance(ids, pa.DictionaryArray) else numbered(ids)
    blank = np.flatnonzero(_is_blank(ids.dictionary))
    if ids.null_count or len(blank):
        rows = np.flatnonzero(np.isin(ids.indices.fill_null(-1).to_numpy(zero_copy_only=False), [-1, *blank]))
        raise UserError(f"{where(int(rows[0]))}: expected {one} id, got nothing. Mend or remove the line.")
    if unique and len(ids.dictionary) < len(ids):
        again = np.ones(len(ids), dtype=bool)
        again[np.unique(ids.indices.to_numpy(), return_index=True)[1]] = False
        row = int(np.argmax(again))
        raise UserError(
            f"{where(row)}: duplicate {one} id {ids[row].as_py()!r} ({again.sum()} such lines); every {one} must "
            "appear once. Remove the duplicates."
        )


def number_items(named: pa.Array, known: pa.Array, where: Callable[[int], str], catalogue: str) -> np.ndarray:
    """Item ids of interactions -> item numbers [n].

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
        raise UserError(
            f"{where(row)}: unknown item {named[row].as_py()!r}: expected one of the {len(known)} items of {catalogue} "
            f"({len(unknown)} such interactions). Add the items or remove the interactions."
        )
    return numbers


def dense_catalogue(table: TextTable) -> pa.Array:
    """Ids in the order of their numbers, from lines `id, number` (columns item and number).

    Raises:
        UserError: duplicate ids, or numbers that are not 0, 1, 2, …
    """
    ids, numbers = table.columns["item"].combine_chunks(), table.columns["number"].combine_chunks()
    check_ids(ids, "item", table.where, unique=True)
    check_ids(numbers, "item", table.where, unique=True)
    expected = pa.array([str(number) for number in range(len(ids))], pa.string())
    positions = pc.index_in(expected, value_set=numbers)
    if positions.null_count:
        gap = int(np.flatnonzero(positions.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(
            f"{table.path}: expected the numbers 0 to {len(ids) - 1}, one a line; {gap} is missing. "
            "The file is cut off or holds other numbers: get it again."
        )
    return ids.take(positions)


def _is_blank(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return pc.equal(pc.utf8_trim_whitespace(pc.fill_null(column, "")), "").to_numpy(zero_copy_only=False)


def _open(path: Path) -> IO[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    return opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="")


def _dialect(delimiter: str, quoted: bool) -> dict[str, Any]:
    return {"delimiter": delimiter, "quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE}


def the_one(folder: Path, pattern: str, exclude: Sequence[str] = (), needed: bool = True) -> Path | None:
    """The one file in `folder` that matches.

    Args:
        folder: must exist.
        pattern: as for glob.
        exclude: name endings to leave out.
        needed: refuse if there is none.

    Raises:
        UserError: no such folder, no such file (if needed), or several.
    """
    if not folder.is_dir():
        raise UserError(f"No folder {folder}: expected one that holds {pattern}. Name it with --input.")
    found = sorted(path for path in folder.glob(pattern) if not path.name.endswith(tuple(exclude)))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{folder}: expected one file {pattern}, found {names}. Move the others away.")
    if not found and needed:
        inside = sorted(path.name for path in folder.iterdir())[:10]
        raise UserError(f"{folder}: missing file {pattern}; found {', '.join(inside) or 'nothing'}. Check --input.")
    return found[0] if found else None


def group(
    items: pa.Table,
    users: pa.DictionaryArray,
    numbers: np.ndarray,
    times: np.ndarray | None,
    ratings: np.ndarray | None = None,
    origin: str = "",
) -> Source:
    """Interactions as rows -> sequences; stable, so that rows of equal time keep their order.

    Args:
        items: the catalogue.
        users: user ids [n], as `need_ids` gives them.
        numbers: item numbers [n].
        times: seconds [n], or None if the rows are in time order.
        ratings: [n] or None.
        origin: where the rows come from.

    Returns:
        Users in order of first appearance.
    """
    codes = users.indices.to_numpy()
    order = np.argsort(codes, kind="stable") if times is None else _by_time(codes, times)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(users.dictionary)))])
    return Source(
        items,
        users.dictionary,
        numbers[order],
        offsets,
        None if times is None else times[order].astype(np.int64),
        None if ratings is None else ratings[order],
        origin,
    )


def _by_time(codes: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The order by code and, within a code, by time; stable."""
    whole = times.astype(np.int64)
    span = int(whole.max(initial=0)) - int(whole.min(initial=0)) + 1
    if (whole != times).any() or span * (int(codes.max(initial=0)) + 1) >= 2**63:
        return np.lexsort((times, codes))
    return np.argsort(codes * np.int64(span) + (whole - whole.min(initial=0)), kind="stable")  # one sort, not two


def flatten(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays, one a user -> (values, offsets)."""
    return np.concatenate(sequences), np.cumsum([0, *map(len, sequences)])
