"""Interactions of users in chunks, one after the other, which are changed and summed up by pure functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from distill.data.sources import Options, Source
from distill.data.sources.blocks import InteractionBlocks

CHUNK_ROWS = 1 << 21  # interactions of a chunk, at least; a user is never cut
Summary = TypeVar("Summary")
Change = Callable[[Source], tuple[Source, Summary]]


@dataclass(frozen=True)
class Loaded:
    """What is known once the log is read.

    Attributes:
        items: the catalogue; row = item number.
        n_rows: interactions of the log.
        n_low: those rated below `min_rating`.
    """

    items: pa.Table
    n_rows: int
    n_low: int


class Chunks(ABC):
    """A log of interactions, and its kept interactions as one `Source` a chunk.

    The users of a chunk follow those of the chunk before it; no user is in two. A chunk's `Source` knows the number of
    items, not the catalogue: its `items` are `unnamed_items`. What is done to a chunk is a function of this chunk
    alone, which may run in another process; sums over all chunks are made of the summaries that it returns.

    Attributes:
        items: the catalogue.
        origin: where the interactions come from, for messages.
        has_times: whether the log has times.
    """

    items: pa.Table
    origin: str
    has_times: bool

    @abstractmethod
    def load(self, blocks: InteractionBlocks, options: Options) -> Loaded:
        """Read all interactions and number their items.

        Raises:
            UserError: what the readers refuse.
        """

    @abstractmethod
    def fill(self, change: Change[Summary]) -> Iterator[Summary]:
        """Sort the kept interactions by user (in order of the first rows), time and row, and cut them into chunks.

        Args:
            change: what is done to a chunk before it is kept.

        Yields:
            What `change` returns beside the chunk.
        """

    @abstractmethod
    def map(self, function: Callable[[Source], Summary]) -> Iterator[Summary]:
        """Yield what a function makes of each chunk, in order."""

    @abstractmethod
    def update(self, change: Change[Summary]) -> Iterator[Summary]:
        """Replace each chunk by what `change` makes of it; yields, in order, what it returns beside the chunk."""

    @abstractmethod
    def with_user_ids(self) -> Iterator[Source]:
        """Yield the chunks in order, with the users' ids."""

    @abstractmethod
    def user_id(self, user: Any) -> str:
        """Return the id of a user, who is given as the chunks name users."""


def unnamed_items(count: int) -> pa.Table:
    """Make a catalogue without ids, which takes no memory."""
    return pa.table({"item_id": pa.nulls(count)})


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
