"""Ranked lists of a system outside this project, as a row of the table: `evaluate.py --lists FILE`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distill.baselines import names
from distill.data.dataset import PAD, Dataset, Examples, Split
from distill.evaluation.ranked_lists import ASKED
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class OutsideLists:
    """The lists of one file.

    Attributes:
        name: of the row: the file's name without `.parquet`.
        items: item numbers of each example, best first, PAD after the last [examples, length].
    """

    name: str
    items: np.ndarray

    def note(self, examples: Examples, exclude_bought: bool) -> str:
        """Say where the lists come from, and in how many there are bought items that the other rows exclude."""
        note = "ranked outside this project"
        if not exclude_bought:
            return note
        base = max(self.items.max(initial=0), examples.histories.max(initial=0)) + 1
        rows = np.arange(len(self.items))[:, None] * base
        bought = np.isin(rows + self.items, (rows + examples.histories)[examples.histories != PAD])
        lists = int((bought & (self.items != PAD)).any(1).sum())
        return note + (f"; {lists:,} lists hold bought items, which keep their ranks" if lists else "")


def check_names(paths: Sequence[Path], others: Sequence[str]) -> None:
    """Refuse files whose row would have the name of another row, or of a column of `lists.parquet`.

    Raises:
        UserError: names the file.
    """
    row_names = {*others, *names.NOT_LEARNED, "teacher", *names.TEACHER_MIXTURES}
    for path in paths:
        if path.stem in ASKED:
            raise UserError(f"--lists {path}: {path.stem!r} names a column of lists.parquet; rename the file.")
        if path.stem in row_names:
            raise UserError(f"--lists {path} would be the row {path.stem!r}, which there is already; rename the file.")
        row_names.add(path.stem)


def content_hash(path: Path) -> str:
    """Hash a file, so that other lists make a finished evaluation stale.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(f"--lists {path} cannot be read: {error.strerror}.") from None


def read_outside_lists(path: Path, dataset: Dataset, examples: Examples, split: Split) -> OutsideLists:
    """Read the lists of the examples that are evaluated.

    Args:
        path: a parquet file with the columns user_id, items (item ids, best first) and, if wanted, scores. It has a row
            for each example of a user, in time order; users who are not evaluated are ignored.
        dataset: knows the ids.
        examples: that are evaluated, by user and position.
        split: of the examples; where only its first are evaluated, the file may have rows for all.

    Raises:
        UserError: an unreadable file, unknown users or items, missing users, an item twice in a list, or scores that
            rise.
    """
    table = _read(path)
    users = _numbers(path, table["user_id"], dataset.user_ids, "user")
    lists = table["items"].combine_chunks()
    if lists.null_count:
        raise UserError(f"{path}: row {np.argmax(lists.is_null())} has no list; write an empty one.")
    items = _numbers(path, lists.flatten(), dataset.items["item_id"], "item")
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    _refuse_repeats(path, table, rows, items, dataset)
    if "scores" in table.column_names:
        _check_scores(path, table, lengths)
    padded = np.full((len(lengths), max(1, lengths.max(initial=0))), PAD)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = items
    return OutsideLists(path.stem, padded[_rows_of(path, users, dataset, examples, split)])


def _read(path: Path) -> pa.Table:
    try:
        table = pq.ParquetFile(path).read()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"--lists {path} is no readable parquet file ({str(error).splitlines()[0]}).") from None
    for name in ("user_id", "items"):
        if name not in table.column_names:
            raise UserError(f"{path} has no column {name!r}; it has {', '.join(table.column_names)}.")
    for name in ("user_id", "items", "scores"):
        if table.column_names.count(name) > 1:
            raise UserError(f"{path} has {table.column_names.count(name)} columns {name!r}; expected one.")
    for name in ("items", "scores"):
        if name in table.column_names and not pa.types.is_list(table.schema.field(name).type):
            kind = table.schema.field(name).type
            raise UserError(f"{path}: column {name!r} must hold a list in each row, it holds {kind}.")
    for name, kind in (("user_id", table["user_id"].type), ("items", table["items"].type.value_type)):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
            raise UserError(f"{path}: column {name!r} must hold ids, which are texts; it holds {kind}.")
    if "scores" in table.column_names:
        kind = table["scores"].type.value_type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise UserError(f"{path}: column 'scores' must hold lists of numbers, it holds lists of {kind}.")
    return table


def _numbers(path: Path, ids: pa.Array, known: pa.Array, noun: str) -> np.ndarray:
    """Translate ids to numbers [n].

    Raises:
        UserError: names the first unknown id.
    """
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    places = pc.index_in(ids.cast(pa.string()), known.cast(pa.string()))
    if places.null_count:
        missing = pc.unique(pc.filter(ids, pc.is_null(places)))
        raise UserError(
            f"{path} names {len(missing):,} {noun}s that the data set does not have, first {missing[0].as_py()!r}. "
            f"{noun}_id must be those of {'sequences' if noun == 'user' else 'items'}.parquet."
        )
    return places.to_numpy().astype(np.int64)


def _refuse_repeats(path: Path, table: pa.Table, rows: np.ndarray, items: np.ndarray, dataset: Dataset) -> None:
    keys, first = np.unique(rows * dataset.n_items + items, return_index=True)
    if len(keys) < len(items):
        again = np.setdiff1d(np.arange(len(items)), first)[0]
        user, item = table["user_id"][int(rows[again])], dataset.items["item_id"][int(items[again])]
        raise UserError(f"{path}: the list of user {user} holds item {item.as_py()!r} twice.")


def _check_scores(path: Path, table: pa.Table, lengths: np.ndarray) -> None:
    column = table["scores"].combine_chunks()
    if not np.array_equal(column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False), lengths):
        raise UserError(f"{path}: scores and items have different lengths.")
    scores = column.flatten().to_numpy(zero_copy_only=False).astype(float)
    if np.isnan(scores).any():
        raise UserError(f"{path}: a score is NaN or missing; items must be best first.")
    rows = np.repeat(np.arange(len(lengths)), lengths)
    rises = (np.diff(scores) > 0) & (rows[1:] == rows[:-1])
    if rises.any():
        row = int(rows[np.argmax(rises)])
        raise UserError(f"{path}: the scores of user {table['user_id'][row]} rise; items must be best first.")


def _rows_of(path: Path, users: np.ndarray, dataset: Dataset, examples: Examples, split: Split) -> np.ndarray:
    """Find the file's row of each example [examples]."""
    counts = np.bincount(dataset.examples(split, 1).users, minlength=dataset.n_users)
    actual = np.bincount(users, minlength=dataset.n_users)
    wrong = np.unique(examples.users[actual[examples.users] != counts[examples.users]])
    if len(wrong):
        first = wrong[0]
        raise UserError(
            f"{path} lacks lists of {len(wrong):,} users or has too many: first user {dataset.user_ids[int(first)]}, "
            f"{actual[first]} instead of {counts[first]}. Each example of the split needs one row."
        )
    order = np.argsort(users, kind="stable")
    starts = np.cumsum(actual) - actual
    opens = np.flatnonzero(np.diff(examples.users, prepend=-1))  # examples are sorted: first one of each user
    within = np.arange(len(examples)) - np.repeat(opens, np.diff(np.append(opens, len(examples))))
    return order[starts[examples.users] + within]
