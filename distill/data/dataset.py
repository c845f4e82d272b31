"""The data set: items, sequences of users in time order, and their split into examples (paper 4.1).

`dataset/` holds:

- `items.parquet`: item_id, title, description, brand, categories; row number = item number. If items were withheld from
  training, a boolean column `withheld` marks them.
- `sequences.parquet`: user_id, items (dense item numbers in time order), timestamps or null. If the data set is split
  by time, train_end and valid_end say where these parts end in the sequence; otherwise the split is leave-one-out.
- `sequence_items.npy` and `sequence_starts.npy`: the column `items` once more, to be memory-mapped
  (`mapped_sequences.py`); data sets of earlier versions have it in `sequences.parquet` alone.

Only `Dataset.training_sequences`, `Dataset.targets` and `Dataset.repeats` use the split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distill.data.examples import PAD, Examples, TargetRanges, ragged_range
from distill.data.mapped_sequences import STARTS, SequenceWriter, has_mapped_sequences, map_sequences
from distill.data.splits import MIN_LENGTH, MIN_LENGTH_CUT, assign_folds, leave_one_out
from distill.runtime import artifacts
from distill.runtime.artifacts import Artifact
from distill.runtime.errors import UserError
from distill.runtime.parquet import id_column, number_lists, read_parquet, text_column, whole_numbers

Split = Literal["train", "valid", "test"]
ROW_GROUP = 1 << 20  # users of a row group of sequences.parquet
INTERACTIONS_AT_ONCE = 1 << 22  # of whole users, in a part of `training_parts`
TEXT_COLUMNS = ("title", "description", "brand", "categories")
TextField = Literal["title", "brand", "categories", "description"]
TEXT_FIELDS: tuple[TextField, ...] = ("title", "brand", "categories", "description")  # in the order of `texts`


@dataclass(frozen=True)
class Dataset:
    """Items in memory, and sequences memory-mapped; sequence u is `values[offsets[u]:offsets[u + 1]]`.

    Attributes:
        artifact: the folder it was read from.
        items: the catalogue; row = item number.
        user_ids: one per sequence, an arrow array of strings.
        values: item numbers of all sequences, one after the other, int32 or int64 [interactions]; what the methods
            return is int64.
        offsets: start of each sequence [users + 1].
        ends: positions in each sequence where its training part and its validation part end [users, 2]; None:
            leave-one-out.
        held_out: users whose training part is not used [users] (bool); None: no users. Their validation and test
            targets remain.
    """

    artifact: Artifact
    items: pa.Table
    user_ids: pa.Array | pa.ChunkedArray
    values: np.ndarray
    offsets: np.ndarray
    ends: np.ndarray | None = None
    held_out: np.ndarray | None = None

    @staticmethod
    def load(folder: Path) -> Dataset:
        """Read a dataset artifact.

        Raises:
            UserError: missing, unfinished or damaged files.
        """
        artifact = artifacts.read(folder, "dataset")
        artifacts.verify(artifact)
        path = Path(folder) / "items.parquet"
        items = read_parquet(path, ("item_id", *TEXT_COLUMNS))
        items = items.set_column(items.column_names.index("item_id"), "item_id", id_column(items, "item_id", path))
        for name in TEXT_COLUMNS:
            place = items.column_names.index(name)
            items = items.set_column(place, name, text_column(items, name, path, may_be_null=True))
        path = Path(folder) / "sequences.parquet"
        if has_mapped_sequences(Path(folder)):
            table = read_parquet(path, ("user_id", "items"), leave_out=("items", "timestamps"))
            values, offsets = map_sequences(Path(folder))
            if len(offsets) - 1 != len(table):
                raise UserError(
                    f"{path} has {len(table)} users, {STARTS} beside it {len(offsets) - 1}: one of them is damaged. "
                    "Make the data set again with --overwrite."
                )
        else:
            table = read_parquet(path, ("user_id", "items"), leave_out=("timestamps",))
            values, offsets = number_lists(table, "items", path)
        users = id_column(table, "user_id", path)
        ends = None
        if "train_end" in table.column_names or "valid_end" in table.column_names:
            for name in {"train_end", "valid_end"} - set(table.column_names):
                raise UserError(f"{path} has no column {name!r}; it has {', '.join(table.column_names)}.")
            ends = np.stack([whole_numbers(table, name, path) for name in ("train_end", "valid_end")], axis=1)
        _check_sequences(path, values, offsets, ends, items.num_rows)
        return Dataset(artifact, items, users, values, offsets, ends)

    @property
    def n_items(self) -> int:
        return self.items.num_rows

    @property
    def n_users(self) -> int:
        return len(self.offsets) - 1

    def sequence(self, user: int) -> np.ndarray:
        """Return the item numbers of a user, in time order [length]."""
        return self.values[self.offsets[user] : self.offsets[user + 1]].astype(np.int64)

    def statistics(self) -> dict[str, float]:
        """Compute the columns of the paper's Table 3."""
        return statistics(self.n_items, self.offsets)

    def texts(self, fields: Sequence[str] = TEXT_FIELDS) -> list[str]:
        """Join title, brand, categories and description, or some of them, to a line an item; empty without text."""
        columns = [self.items[name].to_pylist() for name in fields]
        return [". ".join(part for part in row if part) for row in zip(*columns, strict=True)]

    def _target_ranges(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Compute, per split, where its targets start and end in each sequence [users]; a first item is no target."""
        lengths = np.diff(self.offsets)
        train, valid = (leave_one_out(self.offsets) if self.ends is None else self.ends).T
        starts = {"train": np.ones_like(train), "valid": np.maximum(train, 1), "test": np.maximum(valid, 1)}
        return {split: (starts[split], end) for split, end in (("train", train), ("valid", valid), ("test", lengths))}

    def training_sequences(self, with_validation: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return the training part as (values [n], offsets [users + 1]); sequences may be empty.

        Args:
            with_validation: add the validation part.
        """
        ends = self.training_lengths(with_validation)
        position = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))
        keep = position < np.repeat(ends, np.diff(self.offsets))
        return self.values[keep].astype(np.int64), np.concatenate([[0], np.cumsum(ends)])

    def training_parts(self, with_validation: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield `training_sequences` of some users at a time: up to `INTERACTIONS_AT_ONCE`, or those of one user."""
        lengths, first = self.training_lengths(with_validation), 0
        while first < self.n_users:
            end = int(np.searchsorted(self.offsets, self.offsets[first] + INTERACTIONS_AT_ONCE, side="right")) - 1
            end = max(end, first + 1)  # a longer sequence comes as a whole
            users, place = ragged_range(lengths[first:end])
            values = self.values[self.offsets[first + users] + place]
            yield values, np.concatenate([[0], np.cumsum(lengths[first:end])])
            first = end

    def training_lengths(self, with_validation: bool = False) -> np.ndarray:
        """Return how many items of each sequence, from its first, are its training part [users]; as above."""
        ends = self._target_ranges()["valid" if with_validation else "train"][1]
        return ends if self.held_out is None else np.where(self.held_out, 0, ends)

    def count_purchases(self, with_validation: bool = False) -> np.ndarray:
        """Count how often each item was bought in the training part, as above [n_items]."""
        counts = np.zeros(self.n_items, dtype=np.int64)
        for values, _ in self.training_parts(with_validation):
            counts += np.bincount(values, minlength=self.n_items)
        return counts

    def cold_items(self) -> np.ndarray:
        """Return the numbers of the items that no training sequence holds, ascending."""
        return np.flatnonzero(self.count_purchases() == 0)

    def without_fold(self, folds: int, fold: int) -> Dataset:
        """Drop the training part of one fold's users: the data that a teacher which labels them may see."""
        return replace(self, held_out=assign_folds(np.arange(self.n_users), folds) == fold)

    def repeats(self) -> bool:
        """Return whether a training sequence holds an item twice; looks at some users at a time."""
        for values, offsets in self.training_parts():
            pairs = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) * self.n_items + values
            if len(np.unique(pairs)) < len(pairs):
                return True
        return False

    def resolve_exclude_bought(self, chosen: bool | None) -> bool:
        """Decide whether recommendations exclude items of the history; None: exclude if no sequence repeats an item."""
        return not self.repeats() if chosen is None else chosen

    def examples(self, split: Split, max_history: int = 20) -> Examples:
        """Return all targets of a split with the items before them, user by user, in time order.

        Leave-one-out: the last item of a user is the test target, the item before it the validation target, and every
        earlier one but the first a training target. Split by time: every item of that period which has an item before
        it, so a user may have several examples, or none.

        Args:
            split: train, valid or test.
            max_history: keep this many last items of a history.
        """
        return self.targets(split, max_history).take(slice(None))

    def targets(self, split: Split, max_history: int = 20) -> TargetRanges:
        """Return the targets of a split, whose `examples` can be made part by part; arguments as there."""
        start, end = self._target_ranges()[split]
        counts = np.maximum(end - start, 0)
        if self.held_out is not None and split == "train":
            counts = np.where(self.held_out, 0, counts)
        users = np.flatnonzero(counts)
        return TargetRanges(self.values, self.offsets, users, start[users], np.cumsum(counts[users]), max_history)


def _check_sequences(
    path: Path, values: np.ndarray, offsets: np.ndarray, ends: np.ndarray | None, n_items: int
) -> None:
    """Refuse sequences that `write_dataset` would not have written; the file may be damaged.

    Args:
        path: of the sequences, for the message.
        values, offsets, ends: as the attributes of a `Dataset`.
        n_items: size of the catalogue.

    Raises:
        UserError: items outside the catalogue, users with too few items, parts that do not follow each other.
    """
    lengths = np.diff(offsets)
    problem = None
    if not len(lengths):
        problem = "it has no users"
    elif lengths.min() < (MIN_LENGTH if ends is None else MIN_LENGTH_CUT):
        problem = f"row {int(lengths.argmin())} has {lengths.min()} items, too few to be split"
    elif values.min() < 0 or values.max() >= n_items:
        row = int(np.searchsorted(offsets, np.argmax((values < 0) | (values >= n_items)), side="right")) - 1
        problem = f"row {row} names an item outside the catalogue of {n_items} items"
    elif ends is not None and not ((ends[:, 0] >= 0) & (ends[:, 0] <= ends[:, 1]) & (ends[:, 1] <= lengths)).all():
        problem = "train_end and valid_end are not in order within a sequence"
    if problem:
        raise UserError(f"{path} is damaged: {problem}. Make the data set again with --overwrite.")


def batches_by_length(histories: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches of histories of similar length as (row numbers, histories without common padding).

    Args:
        histories: item numbers padded with PAD on the right [n, length].
        batch_size: histories per batch.
    """
    lengths, order = (histories != PAD).sum(1), order_by_length(histories)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, histories[rows, : max(1, lengths[rows].max())]


def order_by_length(histories: np.ndarray) -> np.ndarray:
    """Return the row numbers of histories [n, length], the shortest first, equals in their order [n]."""
    return np.argsort((histories != PAD).sum(1), kind="stable")


def statistics(n_items: int, offsets: np.ndarray) -> dict[str, float]:
    """Compute the columns of the paper's Table 3: users, items, interactions, sparsity and mean length."""
    return statistics_of(n_items, len(offsets) - 1, int(offsets[-1]))


def statistics_of(n_items: int, users: int, interactions: int) -> dict[str, float]:
    """Compute the columns of the paper's Table 3 from counts."""
    return {
        "users": users,
        "items": n_items,
        "interactions": interactions,
        "sparsity": 1 - interactions / (users * n_items),
        "mean_length": interactions / users,
    }


def as_lists(values: np.ndarray, offsets: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    """Build an arrow column of lists from flat values and offsets."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind))


def write_dataset(
    folder: Path,
    items: pa.Table,
    user_ids: Sequence[str] | pa.Array,
    sequences: Sequence[np.ndarray] | pa.ListArray,
    times: Sequence[np.ndarray] | pa.ListArray | None = None,
    ends: np.ndarray | None = None,
    withheld: np.ndarray | None = None,
) -> None:
    """Check both tables, then write them.

    Args:
        folder: an existing folder.
        items: columns item_id and any of title, description, brand, categories; missing ones become empty.
        user_ids: one per sequence.
        sequences: dense item numbers in time order, one list per user.
        times: seconds since 1970, one list per user, or None.
        ends: of a split by time, as `cut_by_time` returns them [users, 2]; None: leave-one-out.
        withheld: items withheld from training [n_items] (bool); None: no such column.

    Raises:
        UserError: duplicate items or users, numbers outside the catalogue, users with too few items for the split.
    """
    ids = pa.chunked_array([items["item_id"]]) if isinstance(items["item_id"], pa.Array) else items["item_id"]
    ids, users = ids.cast(pa.string()).combine_chunks(), pa.array(user_ids, pa.string())
    check_unique(ids, "item", "items")
    check_unique(users, "user", "sequences")
    rows = _lists(sequences, pa.int32())
    stamps = pa.nulls(len(users), pa.list_(pa.int64())) if times is None else _lists(times, pa.int64())
    lengths = rows.value_lengths().to_numpy(zero_copy_only=False)
    need, split = (MIN_LENGTH, "leave-one-out") if ends is None else (MIN_LENGTH_CUT, "global_cut")
    if (lengths < need).any():
        user = int(np.argmax(lengths < need))
        raise UserError(
            f"User {users[user]} has {lengths[user]} interactions; {split} needs at least {need}. "
            "Remove such users, or run with --short_users drop."
        )
    values = rows.flatten().to_numpy(zero_copy_only=False)
    outside = np.flatnonzero((values < 0) | (values >= len(ids)))
    if len(outside):
        user = int(np.searchsorted(np.cumsum(lengths), outside[0], side="right"))
        raise UserError(f"User {users[user]} names an item outside the catalogue of {len(ids)} items.")
    write_items(folder, ids, items, withheld)
    pq.write_table(sequence_table(users, rows, stamps, ends), folder / "sequences.parquet", row_group_size=ROW_GROUP)
    with SequenceWriter(folder, len(users), len(values)) as writer:
        writer.append(values, lengths)


def write_items(folder: Path, ids: pa.Array, items: pa.Table, withheld: np.ndarray | None) -> None:
    """Write items.parquet; arguments as `write_dataset`, `ids` are the item ids as strings."""
    empty = pa.array([""] * len(ids), pa.string())
    columns = {name: items[name] if name in items.column_names else empty for name in TEXT_COLUMNS}
    if withheld is not None:
        columns["withheld"] = pa.array(withheld)
    pq.write_table(pa.table({"item_id": ids, **columns}), folder / "items.parquet")


def sequence_table(users: pa.Array, rows: pa.ListArray, stamps: pa.Array, ends: np.ndarray | None) -> pa.Table:
    """Build the table of sequences.parquet, or some of its rows; arguments as `write_dataset`, `stamps` its times."""
    table = {"user_id": users, "items": rows, "timestamps": stamps}
    if ends is not None:
        table |= {"train_end": pa.array(ends[:, 0], pa.int32()), "valid_end": pa.array(ends[:, 1], pa.int32())}
    return pa.table(table)


def _lists(rows: Sequence[np.ndarray] | pa.ListArray, kind: pa.DataType) -> pa.ListArray:
    if isinstance(rows, pa.ListArray):
        return rows
    flat = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]) if len(rows) else np.zeros(0, np.int64)
    return as_lists(flat, np.cumsum([0, *map(len, rows)]), kind)


def check_unique(names: pa.Array | pa.ChunkedArray, noun: str, where: str) -> None:
    """Refuse duplicate names.

    Raises:
        UserError: names the first duplicate.
    """
    if pc.count_distinct(names, mode="all").as_py() == len(names):
        return
    seen: set[str] = set()
    for row, name in enumerate(names.to_pylist()):
        if name in seen:
            raise UserError(f"Duplicate {noun} id {name!r} in {where} (row {row}); every {noun} must appear once.")
        seen.add(name)
