"""The data set: items, users' sequences in time order, and how these are split into examples (paper 4.1).

`dataset/` holds `items.parquet` (item_id, title, description, brand, categories; row number = item number) and
`sequences.parquet` (user_id, items as dense item numbers in time order, timestamps or null). A data set that is split
by time has two more columns there, train_end and valid_end: where in the sequence these parts end. Without them the
split is leave-one-out. `training_sequences` and `examples` alone know splits.
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

from distill.data.splits import MIN_LENGTH, MIN_LENGTH_CUT, assign_folds
from distill.runtime import artifacts
from distill.runtime.artifacts import Artifact
from distill.runtime.errors import UserError
from distill.runtime.parquet import read_parquet

Split = Literal["train", "valid", "test"]


PAD = -1  # fills histories on the right


TEXT_COLUMNS = ("title", "description", "brand", "categories")


@dataclass(frozen=True)
class Examples:
    """(history, next item) pairs.

    Attributes:
        users: user number [n].
        positions: index of the target in the user's full sequence [n].
        histories: item numbers, oldest first, padded on the right with PAD [n, max_history].
        targets: item number [n].
    """

    users: np.ndarray
    positions: np.ndarray
    histories: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: np.ndarray | slice) -> Examples:
        """The examples at `rows`."""
        return Examples(self.users[rows], self.positions[rows], self.histories[rows], self.targets[rows])


@dataclass(frozen=True)
class Dataset:
    """Items and sequences in memory; sequence u is `values[offsets[u]:offsets[u + 1]]`.

    Attributes:
        artifact: where it came from.
        items: the catalogue; row = item number.
        user_ids: one a sequence, an arrow array of strings.
        values: item numbers of all sequences, one after the other [interactions].
        offsets: where each sequence starts [users + 1].
        ends: where the training part and the validation part of each sequence end [users, 2]; None: leave-one-out.
        held_out: users without a training part [users]; None: nobody. Their validation and test targets stay.
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
            UserError: missing, unfinished or damaged.
        """
        artifact = artifacts.read(folder, "dataset")
        items = read_parquet(Path(folder) / "items.parquet", ("item_id", *TEXT_COLUMNS))
        table = read_parquet(Path(folder) / "sequences.parquet", ("user_id", "items"))
        column = table["items"].combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))])
        ends = None
        if "train_end" in table.column_names:
            ends = np.stack([table[name].to_numpy() for name in ("train_end", "valid_end")], axis=1).astype(np.int64)
        return Dataset(artifact, items, table["user_id"], values, offsets.astype(np.int64), ends)

    @property
    def n_items(self) -> int:
        return self.items.num_rows

    @property
    def n_users(self) -> int:
        return len(self.offsets) - 1

    def sequence(self, user: int) -> np.ndarray:
        """Item numbers of one user, in time order [length]."""
        return self.values[self.offsets[user] : self.offsets[user + 1]]

    def statistics(self) -> dict[str, float]:
        """The columns of the paper's Table 3."""
        return statistics(self.n_items, self.offsets)

    def texts(self) -> list[str]:
        """One line of text an item: title, brand, categories, description; empty where there is none."""
        columns = [self.items[name].to_pylist() for name in ("title", "brand", "categories", "description")]
        return [". ".join(part for part in row if part) for row in zip(*columns, strict=True)]

    def _parts(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Split -> (start, end) of its targets' positions in each sequence [users]; a first item is nobody's target."""
        lengths = np.diff(self.offsets)
        train, valid = (lengths - 2, lengths - 1) if self.ends is None else self.ends.T
        starts = {"train": np.ones_like(train), "valid": np.maximum(train, 1), "test": np.maximum(valid, 1)}
        return {split: (starts[split], end) for split, end in (("train", train), ("valid", valid), ("test", lengths))}

    def training_sequences(self, with_validation: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """What may be trained on, as (values, offsets); under a split by time some sequences are empty.

        Leave-one-out: all but each user's last two items (with validation: all but the last).
        """
        ends = self._parts()["valid" if with_validation else "train"][1]
        if self.held_out is not None:
            ends = np.where(self.held_out, 0, ends)
        position = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))
        keep = position < np.repeat(ends, np.diff(self.offsets))
        return self.values[keep], np.concatenate([[0], np.cumsum(ends)])

    def without_fold(self, folds: int, fold: int) -> Dataset:
        """The data set whose training part lacks the users of one fold: what a teacher that labels them may see."""
        return replace(self, held_out=assign_folds(np.arange(self.n_users), folds) == fold)

    def repeats(self) -> bool:
        """Whether the training part has an item twice in a sequence; where it never has, nobody buys a thing again."""
        values, offsets = self.training_sequences()
        pairs = np.repeat(np.arange(self.n_users), np.diff(offsets)) * self.n_items + values
        return len(np.unique(pairs)) < len(pairs)

    def resolve_exclude_bought(self, chosen: bool | None) -> bool:
        """Whether items of the history are left out of recommendations: as chosen, else where the data never repeat."""
        return not self.repeats() if chosen is None else chosen

    def examples(self, split: Split, max_history: int = 20) -> Examples:
        """All targets of a split with the items before them, user by user, in time order.

        Leave-one-out: last item tests, the one before validates, every earlier one but the first trains. Split by time:
        every item of that time which has an item before it; a user may have several examples, or none.
        """
        start, end = self._parts()[split]
        counts = np.maximum(end - start, 0)
        if self.held_out is not None and split == "train":
            counts = np.where(self.held_out, 0, counts)
        users = np.repeat(np.arange(self.n_users), counts)
        first = np.cumsum(counts) - counts
        positions = np.arange(counts.sum()) + np.repeat(start - first, counts)
        ends = self.offsets[users] + positions
        lengths = np.minimum(positions, max_history)
        column = np.arange(max_history)
        index = (ends - lengths)[:, None] + column
        histories = np.where(column < lengths[:, None], self.values[np.minimum(index, len(self.values) - 1)], PAD)
        return Examples(users, positions, histories, self.values[ends])


def batches_by_length(histories: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of row numbers with histories of like lengths, and these histories without common padding.

    Args:
        histories: item numbers padded with PAD on the right [n, length].
        batch_size: histories a batch.
    """
    lengths = (histories != PAD).sum(1)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, histories[rows, : max(1, lengths[rows].max())]


def statistics(n_items: int, offsets: np.ndarray) -> dict[str, float]:
    """The columns of the paper's Table 3: users, items, interactions, sparsity and mean length."""
    users, interactions = len(offsets) - 1, int(offsets[-1])
    return {
        "users": users,
        "items": n_items,
        "interactions": interactions,
        "sparsity": 1 - interactions / (users * n_items),
        "mean_length": interactions / users,
    }


def as_lists(values: np.ndarray, offsets: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    """Flat values as an arrow column of lists."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind))


def write_dataset(
    folder: Path,
    items: pa.Table,
    user_ids: Sequence[str] | pa.Array,
    sequences: Sequence[np.ndarray] | pa.ListArray,
    times: Sequence[np.ndarray] | pa.ListArray | None = None,
    ends: np.ndarray | None = None,
) -> None:
    """Write both tables after checking them.

    Args:
        folder: an existing folder.
        items: columns item_id and any of title, description, brand, categories; missing ones become empty.
        user_ids: one a sequence.
        sequences: dense item numbers in time order, one list a user.
        times: seconds since 1970, one list a user, or None.
        ends: of a split by time, as `cut_by_time` gives them [users, 2]; None: leave-one-out.

    Raises:
        UserError: duplicate items or users, numbers outside the catalogue, users with too few items for the split.
    """
    ids = pa.chunked_array([items["item_id"]]) if isinstance(items["item_id"], pa.Array) else items["item_id"]
    ids, users = ids.cast(pa.string()).combine_chunks(), pa.array(user_ids, pa.string())
    check_unique(ids, "item", "items")
    check_unique(users, "user", "sequences")
    rows, stamps = _lists(sequences, pa.int32()), pa.nulls(len(users), pa.list_(pa.int64()))
    if times is not None:
        stamps = _lists(times, pa.int64())
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
    empty = pa.array([""] * len(ids), pa.string())
    columns = {name: items[name] if name in items.column_names else empty for name in TEXT_COLUMNS}
    pq.write_table(pa.table({"item_id": ids, **columns}), folder / "items.parquet")
    table = {"user_id": users, "items": rows, "timestamps": stamps}
    if ends is not None:
        table |= {"train_end": pa.array(ends[:, 0], pa.int32()), "valid_end": pa.array(ends[:, 1], pa.int32())}
    pq.write_table(pa.table(table), folder / "sequences.parquet")


def _lists(rows: Sequence[np.ndarray] | pa.ListArray, kind: pa.DataType) -> pa.ListArray:
    if isinstance(rows, pa.ListArray):
        return rows
    flat = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]) if len(rows) else np.zeros(0, np.int64)
    return as_lists(flat, np.cumsum([0, *map(len, rows)]), kind)


def check_unique(names: pa.Array | pa.ChunkedArray, one: str, where: str) -> None:
    """Raise a UserError that names the first duplicate."""
    if pc.count_distinct(names, mode="all").as_py() == len(names):
        return
    seen: set[str] = set()
    for row, name in enumerate(names.to_pylist()):
        if name in seen:
            raise UserError(f"Duplicate {one} id {name!r} in {where} (row {row}); every {one} must appear once.")
        seen.add(name)
