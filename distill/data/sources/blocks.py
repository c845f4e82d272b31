"""Interactions in blocks of rows, for logs that do not fit into memory.

A reader that can do this has a third function, `read_blocks(folder, options)`, which returns `InteractionBlocks`. It
refuses what `read` refuses, with the same messages. Of a file with several faults it may name another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from distill.data.sources.base import MAX_SECONDS, bad_rating, bad_time
from distill.data.sources.columns import check_each, floats, mixed_forms
from distill.data.sources.numbering import check_ids, is_blank


@dataclass(frozen=True)
class BlockColumns:
    """Which columns hold what.

    Attributes:
        user, item: column names of the ids.
        time, rating: column names, or None if they are not read.
        time_expected, rating_expected: what these columns should hold, for messages.
        convert: turns times and ratings into floats; raises `pa.ArrowInvalid` where it fails.
    """

    user: str
    item: str
    time: str | None
    rating: str | None
    time_expected: str
    rating_expected: str
    convert: Callable[[pa.ChunkedArray], np.ndarray]


@dataclass(frozen=True)
class Block:
    """Some rows of a log, one after the other.

    Attributes:
        first_row: number of the first row in the file.
        users, items: ids as strings [n].
        times: seconds [n], or None.
        ratings: [n], or None.
    """

    first_row: int
    users: pa.ChunkedArray
    items: pa.ChunkedArray
    times: np.ndarray | None
    ratings: np.ndarray | None


@dataclass
class BadRows:
    """Counts the rows that a check refuses, over all blocks.

    Attributes:
        count: such rows.
        row, value: of the first of them.
    """

    count: int = 0
    row: int = 0
    value: float = 0.0

    def add(self, is_bad: np.ndarray, values: np.ndarray, first_row: int) -> None:
        """Count the bad rows of a block, whose first row has the number `first_row`."""
        rows = np.flatnonzero(is_bad)
        if len(rows) and not self.count:
            self.row, self.value = first_row + int(rows[0]), values[rows[0]]
        self.count += len(rows)

    def add_later(self, later: BadRows) -> None:
        """Add the bad rows of a part of the file that follows the rows counted here."""
        if not self.count:
            self.row, self.value = later.row, later.value
        self.count += later.count


@dataclass(frozen=True)
class Part:
    """Rows of a file, one after the other, that a process can read without those before them.

    Attributes:
        first_row: number of the first row in the file.
        open: reads the rows in blocks; works in other processes too, also on other machines that have the file.
    """

    first_row: int
    open: Callable[[], Iterator[pa.Table]]


@dataclass(frozen=True)
class InteractionBlocks:
    """A log of interactions that is read block by block, once.

    Attributes:
        path: the file of interactions.
        catalogue_path: the file of items; `path` if there is none.
        columns: which columns hold what.
        tables: the rows in blocks.
        where: row -> place in the file, for messages.
        items: the catalogue (item_id and texts); None: the items are those of the interactions, as they come.
        only_items: cuts the catalogue down to given rows (ascending), which are the items with interactions; None: it
            keeps all.
        parts: all rows once more, in parts; none if the file can only be read from its beginning.
        first_row: number of the first row of `tables`.
        head: the file's first row, where `tables` begin later; it tells of which form times and ratings are.
        bad_times: times that cannot be stored.
        bad_ratings: ratings that are NaN or infinite.
    """

    path: Path
    catalogue_path: Path
    columns: BlockColumns
    tables: Iterator[pa.Table]
    where: Callable[[int], str]
    items: pa.Table | None = None
    only_items: Callable[[np.ndarray], pa.Table] | None = None
    parts: tuple[Part, ...] = ()
    first_row: int = 0
    head: pa.Table | None = None
    bad_times: BadRows = field(default_factory=BadRows)
    bad_ratings: BadRows = field(default_factory=BadRows)

    def __iter__(self) -> Iterator[Block]:
        """Yield checked blocks.

        Raises:
            UserError: malformed or cut-off files, blank ids, times or ratings that are none.
        """
        columns, first_row = self.columns, self.first_row
        read_times = _BlockNumbers(self.where, columns.time_expected, columns.convert)
        read_ratings = _BlockNumbers(self.where, columns.rating_expected, columns.convert)
        for name, numbers in ((columns.time, read_times), (columns.rating, read_ratings)):
            if self.head is not None and name is not None:
                numbers.expect_form_of(self.head[name])
        for table in self.tables:
            users = self._ids(table[columns.user], "user", first_row)
            items = self._ids(table[columns.item], "item", first_row)
            times = ratings = None
            if columns.time is not None:
                times = read_times(table[columns.time], first_row)
                self.bad_times.add(~(np.abs(times) < MAX_SECONDS), times, first_row)
            if columns.rating is not None:
                ratings = read_ratings(table[columns.rating], first_row)
                self.bad_ratings.add(~np.isfinite(ratings), ratings, first_row)
            yield Block(first_row, users, items, times, ratings)
            first_row += len(table)

    def without_rows(self, head: pa.Table) -> InteractionBlocks:
        """Make blocks for `of_part` in other processes, without all that only a whole file has; `head` as above."""
        return replace(self, tables=iter(()), items=None, only_items=None, parts=(), head=head)

    def of_part(self, part: Part) -> InteractionBlocks:
        """Make blocks of a part alone; their checks are those of the whole file's."""
        bad_times, bad_ratings = BadRows(), BadRows()
        return replace(self, tables=part.open(), first_row=part.first_row, bad_times=bad_times, bad_ratings=bad_ratings)

    def check_numbers(self) -> None:
        """Refuse the bad ratings and times that the blocks held.

        Raises:
            UserError: names the first of them and counts them.
        """
        for bad, error in ((self.bad_ratings, bad_rating), (self.bad_times, bad_time)):
            if bad.count:
                raise error(self.where(bad.row), bad.value, bad.count)

    def _ids(self, column: pa.ChunkedArray, noun: str, first_row: int) -> pa.ChunkedArray:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        ids = column.cast(pa.string())
        if ids.null_count or is_blank(ids).any():
            check_ids(ids, noun, _from_row(self.where, first_row), unique=False)  # raises the message
        return ids


class _BlockNumbers:
    """Converts the blocks of a column to floats, and refuses columns that hold numbers here and dates there."""

    def __init__(self, where: Callable[[int], str], expected: str, convert: Callable[[pa.ChunkedArray], np.ndarray]):
        self.where, self.expected, self.convert = where, expected, convert
        self.first_value: object = None
        self.is_number: bool | None = None

    def expect_form_of(self, column: pa.ChunkedArray) -> None:
        """Take the form of the file's first row, given as a column, without refusing it: its own block does that."""
        self.first_value = column[0].as_py()
        self.is_number = _is_number(column) if pa.types.is_string(column.type) else None

    def __call__(self, column: pa.ChunkedArray, first_row: int) -> np.ndarray:
        """Convert a block, whose first row has the number `first_row` [n]."""
        if len(column) and self.first_value is None:
            self.first_value = column[0].as_py()
        try:
            numbers = self.convert(column)
        except pa.ArrowInvalid:
            check_each(column, _from_row(self.where, first_row), self.expected, self.convert)
            raise mixed_forms(self.where(0), self.expected, self.first_value) from None
        if len(column) and pa.types.is_string(column.type):
            is_number = _is_number(column.slice(0, 1))  # a block is of one form, or it could not be converted
            if self.is_number not in (None, is_number):
                raise mixed_forms(self.where(0), self.expected, self.first_value)
            self.is_number = is_number
        return numbers


def _is_number(column: pa.ChunkedArray) -> bool:
    try:
        floats(column)
    except pa.ArrowInvalid:
        return False
    return True


def _from_row(where: Callable[[int], str], first_row: int) -> Callable[[int], str]:
    """Shift `where`, so that it takes the row of a block."""
    return lambda row: where(first_row + row)
