"""The data set: items, users' sequences in time order, and leave-one-out examples (paper 4.1).

`dataset/` holds `items.parquet` (item_id, title, description, brand, categories; row number = item number) and
`sequences.parquet` (user_id, items as dense item numbers in time order, timestamps or null).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill import artifacts
from distill.artifacts import Artifact, UserError

Split = Literal["train", "valid", "test"]
PAD = -1  # fills histories on the right
TEXT_COLUMNS = ("title", "description", "brand", "categories")
MIN_LENGTH = 3  # leave-one-out: one item to train on, one to validate, one to test


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
    """Items and sequences in memory; sequence u is `values[offsets[u]:offsets[u + 1]]`."""

    artifact: Artifact
    items: pa.Table
    user_ids: list[str]
    values: np.ndarray
    offsets: np.ndarray

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
        return Dataset(artifact, items, table["user_id"].to_pylist(), values, offsets.astype(np.int64))

    @property
    def n_items(self) -> int:
        return self.items.num_rows

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    def sequence(self, user: int) -> np.ndarray:
        """Item numbers of one user, in time order [length]."""
        return self.values[self.offsets[user] : self.offsets[user + 1]]

    def texts(self) -> list[str]:
        """One line of text an item: title, brand, categories, description; empty where there is none."""
        columns = [self.items[name].to_pylist() for name in ("title", "brand", "categories", "description")]
        return [". ".join(part for part in row if part) for row in zip(*columns, strict=True)]

    def training_sequences(self) -> tuple[np.ndarray, np.ndarray]:
        """Everything but each user's last two items, as (values, offsets)."""
        lengths = np.diff(self.offsets) - 2
        keep = np.ones(len(self.values), dtype=bool)
        keep[self.offsets[1:] - 1] = False
        keep[self.offsets[1:] - 2] = False
        return self.values[keep], np.concatenate([[0], np.cumsum(lengths)])

    def examples(self, split: Split, max_history: int = 20) -> Examples:
        """Leave-one-out: last item tests, the one before validates, every earlier one but the first trains."""
        if split == "test":
            users, positions = np.arange(self.n_users), np.diff(self.offsets) - 1
        elif split == "valid":
            users, positions = np.arange(self.n_users), np.diff(self.offsets) - 2
        else:
            counts = np.diff(self.offsets) - 3
            users = np.repeat(np.arange(self.n_users), counts)
            first = np.cumsum(counts) - counts
            positions = np.arange(counts.sum()) - np.repeat(first, counts) + 1
        ends = self.offsets[users] + positions
        lengths = np.minimum(positions, max_history)
        column = np.arange(max_history)
        index = (ends - lengths)[:, None] + column
        histories = np.where(column < lengths[:, None], self.values[np.minimum(index, len(self.values) - 1)], PAD)
        return Examples(users, positions, histories, self.values[ends])


def write_dataset(folder: Path, items: pa.Table, user_ids: list[str], sequences: list[np.ndarray], times=None) -> None:
    """Write both tables after checking them.

    Args:
        folder: an existing folder.
        items: columns item_id and any of title, description, brand, categories; missing ones become empty.
        sequences: dense item numbers in time order, one array a user.
        times: seconds since 1970, one array a user, or None.

    Raises:
        UserError: duplicate items or users, numbers outside the catalogue, users with fewer than 3 items.
    """
    ids = items["item_id"].to_pylist()
    check_unique(ids, "item", "items")
    check_unique(user_ids, "user", "sequences")
    for user, sequence in zip(user_ids, sequences, strict=True):
        if len(sequence) < MIN_LENGTH:
            raise UserError(
                f"User {user} has {len(sequence)} interactions; leave-one-out needs at least {MIN_LENGTH}. "
                "Remove such users, or run with --short_users drop."
            )
        if len(sequence) and (min(sequence) < 0 or max(sequence) >= len(ids)):
            raise UserError(f"User {user} names an item outside the catalogue of {len(ids)} items.")
    empty = pa.array([""] * len(ids), pa.string())
    columns = {name: items[name] if name in items.column_names else empty for name in TEXT_COLUMNS}
    pq.write_table(pa.table({"item_id": pa.array(ids, pa.string()), **columns}), folder / "items.parquet")
    stamps = pa.nulls(len(user_ids), pa.list_(pa.int64()))
    if times is not None:
        stamps = pa.array([list(map(int, row)) for row in times], pa.list_(pa.int64()))
    rows = pa.array([list(map(int, sequence)) for sequence in sequences], pa.list_(pa.int32()))
    table = pa.table({"user_id": pa.array(user_ids, pa.string()), "items": rows, "timestamps": stamps})
    pq.write_table(table, folder / "sequences.parquet")


def check_unique(names: list[str], one: str, where: str) -> None:
    """Raise a UserError that names the first duplicate."""
    seen: set[str] = set()
    for row, name in enumerate(names):
        if name in seen:
            raise UserError(f"Duplicate {one} id {name!r} in {where} (row {row}); every {one} must appear once.")
        seen.add(name)


def read_parquet(path: Path, columns: tuple[str, ...]) -> pa.Table:
    """Read a parquet file that must hold the given columns.

    Raises:
        UserError: missing, truncated, or without one of the columns.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"Missing file {path}; its artifact is damaged, make it again with --overwrite.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]}).") from None
    for name in columns:
        if name not in table.column_names:
            raise UserError(f"{path} has no column {name!r}; it has {', '.join(table.column_names)}.")
    return table
