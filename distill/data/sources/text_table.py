"""Delimited text files as tables of strings, with the line number of every row for messages."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from distill.data.sources.numbering import check_ids
from distill.runtime.errors import UserError

CSV_BLOCK = 1 << 24  # bytes; ids are numbered block by block


@dataclass(frozen=True)
class TextTable:
    """A delimited text file as columns of strings.

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
            ids: columns with many repetitions, to be numbered while reading.

        Raises:
            UserError: empty, a line with too few or too many fields, not UTF-8.
        """
        table, names, kept, types = TextTable._open(path, delimiter, quoted, names, typed, only, ids)
        try:
            columns = pacsv.read_csv(path, *table._options(names, kept, types))
        except pa.ArrowInvalid as error:
            if not table._is_without_rows(error):
                raise UserError(table._explain(len(names), str(error))) from None
            columns = pa.table({name: pa.array([], kind) for name, kind in types.items()})
        return replace(table, columns=columns)

    @staticmethod
    def blocks(
        path: Path, delimiter: str, quoted: bool, typed: bool, only: Sequence[str]
    ) -> tuple[TextTable, Iterator[pa.Table]]:
        """Open a file that has a header, to be read block by block; arguments and errors as `read`.

        Returns:
            The table without rows, and its rows.
        """
        table, names, kept, types = TextTable._open(path, delimiter, quoted, None, typed, only)
        empty = pa.table({name: pa.array([], kind) for name, kind in types.items()})

        def read_blocks() -> Iterator[pa.Table]:
            try:
                with pacsv.open_csv(path, *table._options(names, kept, types)) as reader:
                    for batch in reader:
                        yield pa.table(batch)
            except pa.ArrowInvalid as error:
                if not table._is_without_rows(error):
                    raise UserError(table._explain(len(names), str(error))) from None

        return replace(table, columns=empty), read_blocks()

    @staticmethod
    def _open(
        path: Path,
        delimiter: str,
        quoted: bool,
        names: Sequence[str] | None,
        typed: bool,
        only: Sequence[str] | None,
        ids: Sequence[str] = (),
    ) -> tuple[TextTable, list[str], list[str], dict[str, pa.DataType]]:
        """Check the header; returns a table without columns, all column names, those to keep, and their types."""
        header = names is None
        if names is None:
            names = _header(path, delimiter, quoted, typed)
            if any("\ufffd" in name for name in names):  # it would name another column, and a time be overlooked
                raise UserError(f"{path}:1: expected a header in UTF-8, got {', '.join(names)}. Convert the file.")
        if not any(names) or len(set(names)) < len(names):
            raise UserError(
                f"{path}:1: expected a header with distinct column names, got {', '.join(names) or 'none'}."
            )
        table = TextTable(path, pa.table({}), delimiter, quoted, header)
        kept = list(only if only is not None and set(only) <= set(names) else names)
        types = {name: pa.dictionary(pa.int32(), pa.string()) if name in ids else pa.string() for name in kept}
        return table, list(names), kept, types

    def _options(
        self, names: list[str], kept: list[str], types: dict[str, pa.DataType]
    ) -> tuple[pacsv.ReadOptions, pacsv.ParseOptions, pacsv.ConvertOptions]:
        quote = '"' if self.quoted else False
        return (
            pacsv.ReadOptions(column_names=names, skip_rows=int(self.header), block_size=CSV_BLOCK),
            pacsv.ParseOptions(delimiter=self.delimiter, quote_char=quote, newlines_in_values=self.quoted),
            pacsv.ConvertOptions(column_types=types, include_columns=kept, strings_can_be_null=False),
        )

    def _is_without_rows(self, error: pa.ArrowInvalid) -> bool:
        return self.path.stat().st_size == 0 or "Empty CSV" in str(error)

    def where(self, row: int) -> str:
        """Name file and line of a row, as `path:line`; reads the file again."""
        for number, (line, _) in enumerate(self._rows()):
            if number == row:
                return f"{self.path}:{line}"
        return str(self.path)

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Read (line, fields) of each row; slow, for messages only."""
        with _open(self.path) as file:
            rows = csv.reader(file, **_dialect(self.delimiter, self.quoted))
            if self.header:
                next(rows, None)
            for fields in rows:
                if fields:
                    yield rows.line_num, fields

    def _explain(self, width: int, message: str) -> str:
        for line, fields in self._rows():
            if len(fields) != width:
                return (
                    f"{self.path}:{line}: malformed or cut off: expected {width} fields, got {len(fields)}: "
                    f"{self.delimiter.join(fields)[:80]!r}. Mend or remove the line."
                )
        return f"{self.path} cannot be read: {message.splitlines()[0]}. Expected UTF-8 text, {width} fields a line."


def dense_catalogue(table: TextTable) -> pa.Array:
    """Sort item ids by their numbers, from lines `id, number` (columns item and number).

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


def _header(path: Path, delimiter: str, quoted: bool, typed: bool) -> list[str]:
    with _open(path) as file:
        names = [name.strip() for name in next(csv.reader(file, **_dialect(delimiter, quoted)), [])]
    return [name.split(":")[0] for name in names] if typed else names


def _open(path: Path) -> IO[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="")


def _dialect(delimiter: str, quoted: bool) -> dict[str, Any]:
    return {"delimiter": delimiter, "quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE}
