"""Sorted interactions on disk, in chunks that are cut between users."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from distill.data.sources import Source

CHUNK_ROWS = 1 << 21  # interactions of a chunk, at least; a user is never cut


class Chunks:
    """Interactions that lie on disk as one `Source` a chunk.

    The users of a chunk follow those of the chunk before it. In place of ids they have numbers, the first row of each.

    Args:
        folder: exists; chunks are written below it.
        items: the catalogue.
        origin: where the interactions come from, for messages.
        has_times: whether the log has times.
    """

    def __init__(self, folder: Path, items: pa.Table, origin: str, has_times: bool):
        self.folder, self.items, self.origin, self.has_times = folder, items, origin, has_times
        self.paths: list[Path] = []

    def __iter__(self) -> Iterator[Source]:
        """Read one chunk after the other."""
        return map(self._load, self.paths)

    def write(self, batches: Iterable[pa.RecordBatch], change: Callable[[Source], Source]) -> None:
        """Cut sorted rows into chunks and write them.

        Args:
            batches: columns user, item, time; sorted.
            change: what is done to a chunk before it is written.
        """
        for rows in between_users(batches):
            self._save(self.folder / f"{len(self.paths)}.npy", change(self._source(rows)))
            self.paths.append(self.folder / f"{len(self.paths)}.npy")

    def update(self, change: Callable[[Source], Source]) -> None:
        """Replace each chunk by what `change` makes of it; chunks that it returns as they are stay as they are."""
        for path in self.paths:
            source = self._load(path)
            changed = change(source)
            if changed is not source:
                self._save(path, changed)

    def _source(self, rows: pa.Table) -> Source:
        users = rows["user"].to_numpy()
        starts = np.flatnonzero(np.diff(users, prepend=-1))
        times = rows["time"].to_numpy().astype(np.int64) if self.has_times else None
        offsets = np.append(starts, len(users))
        return Source(self.items, pa.array(users[starts]), rows["item"].to_numpy(), offsets, times, origin=self.origin)

    def _save(self, path: Path, source: Source) -> None:
        with open(path, "wb") as file:
            for array in (source.user_ids.to_numpy(), source.values, source.offsets, source.times):
                if array is not None:
                    np.save(file, array)

    def _load(self, path: Path) -> Source:
        with open(path, "rb") as file:
            users, values, offsets = (np.load(file) for _ in range(3))
            times = np.load(file) if self.has_times else None
        return Source(self.items, pa.array(users), values, offsets, times, origin=self.origin)


def between_users(batches: Iterable[pa.RecordBatch], rows: int | None = None) -> Iterator[pa.Table]:
    """Gather batches of rows that are sorted by user to tables that hold all rows of their users.

    Args:
        batches: have a column `user`.
        rows: of a table, at least (default: CHUNK_ROWS); only the last has fewer.
    """
    least = rows or CHUNK_ROWS
    waiting: list[pa.RecordBatch] = []
    n_waiting = 0
    for batch in batches:
        waiting.append(batch)
        n_waiting += len(batch)
        if n_waiting >= least:
            table = pa.Table.from_batches(waiting)
            users = table["user"].to_numpy()
            start_of_last = int(np.searchsorted(users, users[-1]))
            if start_of_last >= least:
                yield table.slice(0, start_of_last)
                waiting, n_waiting = table.slice(start_of_last).to_batches(), n_waiting - start_of_last
    if waiting:
        yield pa.Table.from_batches(waiting)
