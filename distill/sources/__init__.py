"""Readers of outside formats: each module has `files(folder, options)` and `read(folder, options) -> Source`."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from distill.artifacts import UserError
from distill.catalog import MIN_LENGTH, TEXT_COLUMNS
from distill.config import suggest

FORMATS = {
    "demo": "distill.sources.demo",
    "recbole": "distill.sources.recbole",
    "lcrec": "distill.sources.lcrec",
    "table": "distill.sources.table",
}


@dataclass(frozen=True)
class Options:
    """What readers may be told; each takes what concerns it.

    Attributes:
        seed: of the demo's shop and users.
        users: how many users the demo has.
        empty_text: refuse items without text where the source has texts, or keep them.
        user_column, item_column, time_column: names in tables; no time column means that rows are in time order.
    """

    seed: int = 0
    users: int = 2000
    empty_text: Literal["error", "keep"] = "error"
    user_column: str = "user_id"
    item_column: str = "item_id"
    time_column: str | None = "timestamp"


@dataclass(frozen=True)
class Source:
    """What a reader found.

    Attributes:
        items: item_id and any of title, description, brand, categories (strings); row = item number.
        user_ids: one a user.
        sequences: item numbers in time order, one int array a user.
        times: seconds since 1970, one int array a user, or None where the format has none.
        origin: where the interactions come from, for messages.
        extra_files: writes further files of the data set into the folder it is given.
    """

    items: pa.Table
    user_ids: list[str]
    sequences: list[np.ndarray]
    times: list[np.ndarray] | None = None
    origin: str = ""
    extra_files: Callable[[Path], None] | None = None


def reader(name: str) -> ModuleType:
    """The module that reads format `name`, a key of FORMATS."""
    return importlib.import_module(FORMATS[name])


def without_short_users(source: Source, short_users: Literal["error", "drop"]) -> Source:
    """Refuse or drop users with fewer than 3 items.

    Raises:
        UserError: there are such users and they are not to be dropped, or nobody is left.
    """
    lengths = np.array([len(sequence) for sequence in source.sequences], dtype=np.int64)
    short = np.flatnonzero(lengths < MIN_LENGTH)
    if len(short) and short_users == "error":
        user = short[0]
        raise UserError(
            f"{source.origin}: user {source.user_ids[user]!r} has {lengths[user]} interactions, leave-one-out needs at "
            f"least {MIN_LENGTH} ({len(short)} such users). Remove them, or run with --short_users drop."
        )
    if len(short) == len(lengths):
        raise UserError(f"{source.origin}: no user with at least {MIN_LENGTH} interactions, expected some.")
    if not len(short):
        return source
    keep = np.flatnonzero(lengths >= MIN_LENGTH)
    return replace(
        source,
        user_ids=[source.user_ids[user] for user in keep],
        sequences=[source.sequences[user] for user in keep],
        times=None if source.times is None else [source.times[user] for user in keep],
    )


def check_texts(items: pa.Table, where: Callable[[int], str], empty_text: Literal["error", "keep"]) -> None:
    """Refuse items all of whose text columns are blank.

    Args:
        items: the catalogue; has at least one text column.
        where: row of the catalogue -> place in a file, for the message.
        empty_text: "keep" accepts everything.

    Raises:
        UserError: names the first such item and counts them.
    """
    if empty_text == "keep":
        return
    blank = np.ones(items.num_rows, dtype=bool)
    for name in set(TEXT_COLUMNS) & set(items.column_names):
        blank &= _is_blank(items[name])
    rows = np.flatnonzero(blank)
    if len(rows):
        first = int(rows[0])
        raise UserError(
            f"{where(first)}: expected a text for every item, found none for item "
            f"{items['item_id'][first].as_py()!r} ({len(rows)} such items). "
            "Add the texts, or go on without them: --empty_text keep."
        )


@dataclass(frozen=True)
class TextTable:
    """A delimited text file: its columns as strings, and the way back from a row to its line.

    Attributes:
        path: the file.
        columns: column names and strings; missing values are empty strings.
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
        path: Path, delimiter: str = "\t", quoted: bool = False, names: Sequence[str] | None = None, typed: bool = False
    ) -> TextTable:
        """Read a file.

        Args:
            path: must exist.
            delimiter: between fields.
            quoted: fields may stand in double quotes, and then hold line ends.
            names: of the columns, if the file has no header.
            typed: header fields look like `user_id:token`, as in RecBole's files.

        Raises:
            UserError: empty, a line with too few or too many fields, not UTF-8.
        """
        header = names is None
        if names is None:
            with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
                names = next(csv.reader(file, **_dialect(delimiter, quoted)), [])
            names = [name.split(":")[0] if typed else name for name in (name.strip() for name in names)]
        if not any(names) or len(set(names)) < len(names):
            raise UserError(
                f"{path}:1: expected a header with distinct column names, got {', '.join(names) or 'none'}."
            )
        result = TextTable(path, pa.table({}), delimiter, quoted, header)
        try:
            columns = pacsv.read_csv(
                path,
                pacsv.ReadOptions(column_names=list(names), skip_rows=int(header)),
                pacsv.ParseOptions(delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted),
                pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
            )
        except pa.ArrowInvalid as error:
            if path.stat().st_size == 0 or "Empty CSV" in str(error):
                columns = pa.table({name: pa.array([], pa.string()) for name in names})
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
        with open(self.path, encoding="utf-8-sig", errors="replace", newline="") as file:
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


def need_column(columns: pa.Table, name: str, where: str, hint: str = "") -> pa.Array:
    """A column as strings.

    Raises:
        UserError: there is none of this name.
    """
    if name not in columns.column_names:
        raise UserError(f"{where}: missing column {name!r}. {suggest(name, columns.column_names)} {hint}".rstrip())
    column = columns[name].combine_chunks()
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def check_ids(ids: pa.Array, one: str, where: Callable[[int], str], unique: bool) -> None:
    """Refuse blank and, if `unique`, repeated ids.

    Raises:
        UserError: names the first one's place.
    """
    blank = np.flatnonzero(_is_blank(ids))
    if len(blank):
        raise UserError(f"{where(int(blank[0]))}: expected {one} id, got nothing. Mend or remove the line.")
    if unique:
        codes = ids.dictionary_encode().indices.to_numpy(zero_copy_only=False)
        again = np.ones(len(codes), dtype=bool)
        again[np.unique(codes, return_index=True)[1]] = False
        if again.any():
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
    numbers = pc.index_in(named, value_set=known)
    unknown = np.flatnonzero(numbers.is_null().to_numpy(zero_copy_only=False))
    if len(unknown):
        row = int(unknown[0])
        raise UserError(
            f"{where(row)}: unknown item {named[row].as_py()!r}: expected one of the {len(known)} items of {catalogue} "
            f"({len(unknown)} such interactions). Add the items or remove the interactions."
        )
    return numbers.to_numpy(zero_copy_only=False).astype(np.int64)


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


def group(users: pa.Array | pa.ChunkedArray, items: np.ndarray, times: np.ndarray | None) -> tuple:
    """Interactions as rows -> sequences; stable, so that rows of equal time keep their order.

    Args:
        users: user ids [n].
        items: item numbers [n].
        times: seconds [n], or None if the rows are in time order.

    Returns:
        (user_ids, sequences, times or None); users in order of first appearance.
    """
    encoded = pc.dictionary_encode(users)
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable") if times is None else np.lexsort((times, codes))
    ends = np.cumsum(np.bincount(codes, minlength=len(encoded.dictionary)))[:-1]
    if not len(codes):
        return [], [], None if times is None else []
    ids = [str(user) for user in encoded.dictionary.to_pylist()]
    stamps = None if times is None else np.split(times[order].astype(np.int64), ends)
    return ids, np.split(items[order], ends), stamps
