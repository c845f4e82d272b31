"""Chunks on the disk of this machine, of a log in DuckDB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from distill.data.out_of_core.chunks import Change, Chunks, Loaded, Summary, between_users, unnamed_items
from distill.data.out_of_core.database import Database
from distill.data.sources import Options, Source
from distill.data.sources.blocks import InteractionBlocks


class DiskChunks(Chunks):
    """Chunks in files. In place of ids their users have numbers, the first row of each.

    Args:
        folder: exists; chunks are written below it.
        database: holds the log and the users' ids.
    """

    def __init__(self, folder: Path, database: Database):
        self.folder, self.database = folder, database
        self.paths: list[Path] = []

    def load(self, blocks: InteractionBlocks, options: Options) -> Loaded:
        """See `Chunks`."""
        loaded = self.database.load(blocks, options)
        self.items, self.origin, self.has_times = loaded.items, str(blocks.path), blocks.columns.time is not None
        return loaded

    def fill(self, change: Change[Summary]) -> Iterator[Summary]:
        """See `Chunks`; afterwards the database has no interactions."""
        for rows in between_users(self.database.sorted_rows(self.has_times)):
            self.paths.append(self.folder / f"{len(self.paths)}.npy")
            changed, summary = change(self._source(rows))
            self._save(self.paths[-1], changed)
            yield summary
        self.database.drop_interactions()

    def map(self, function: Callable[[Source], Summary]) -> Iterator[Summary]:
        """See `Chunks`."""
        return map(function, self._sources())

    def update(self, change: Change[Summary]) -> Iterator[Summary]:
        """See `Chunks`; chunks that `change` returns as they are stay as they are."""
        for path, source in zip(self.paths, self._sources(), strict=True):
            changed, summary = change(source)
            if changed is not source:
                self._save(path, changed)
            yield summary

    def with_user_ids(self) -> Iterator[Source]:
        """See `Chunks`."""
        numbers = np.concatenate([source.user_ids.to_numpy() for source in self._sources()])
        batches, waiting = self.database.user_ids(numbers), pa.table({"user_id": pa.array([], pa.string())})
        for source in self._sources():
            users = len(source.user_ids)
            while len(waiting) < users:
                waiting = pa.concat_tables([waiting, next(batches)])
            yield replace(source, user_ids=waiting["user_id"].slice(0, users).combine_chunks())
            waiting = waiting.slice(users)

    def user_id(self, user: int) -> str:
        """See `Chunks`."""
        return self.database.user_id(user)

    def _sources(self) -> Iterator[Source]:
        return map(self._load, self.paths)

    def _source(self, rows: pa.Table) -> Source:
        users = rows["user"].to_numpy()
        starts = np.flatnonzero(np.diff(users, prepend=-1))
        times = rows["time"].to_numpy().astype(np.int64) if self.has_times else None
        return self._make(users[starts], rows["item"].to_numpy(), np.append(starts, len(users)), times)

    def _save(self, path: Path, source: Source) -> None:
        with open(path, "wb") as file:
            for array in (source.user_ids.to_numpy(), source.values, source.offsets, source.times):
                if array is not None:
                    np.save(file, array)

    def _load(self, path: Path) -> Source:
        with open(path, "rb") as file:
            users, values, offsets = (np.load(file) for _ in range(3))
            times = np.load(file) if self.has_times else None
        return self._make(users, values, offsets, times)

    def _make(self, users: np.ndarray, values: np.ndarray, offsets: np.ndarray, times: np.ndarray | None) -> Source:
        items = unnamed_items(self.items.num_rows)
        return Source(items, pa.array(users), values, offsets, times, origin=self.origin)
