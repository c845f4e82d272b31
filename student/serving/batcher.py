"""Dynamic batching: requests that arrive within a few milliseconds are ranked together, by similar length."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from student.serving.models import ServedStudent


class Overloaded(Exception):  # noqa: N818 (a state, not an error)
    """The queue is full: ask again later."""


@dataclass(frozen=True)
class Query:
    """One history to rank after.

    Attributes:
        student: which student.
        history: item numbers, oldest first.
        width: beams.
        exclude_bought: leave out the history's items.
        items: item numbers to which the list is restricted; None: all.
    """

    student: ServedStudent
    history: list[int]
    width: int
    exclude_bought: bool
    items: np.ndarray | None = None

    @property
    def key(self) -> Hashable:
        """Queries of one key can be ranked in one batch."""
        restriction = None if self.items is None else self.items.tobytes()
        return id(self.student), self.width, self.exclude_bought, restriction


@dataclass
class _Waiting:
    query: Query
    key: Hashable
    answer: asyncio.Future = field(repr=False)


class Batcher:
    """Collects queries and ranks them in batches, in a thread of its own.

    Args:
        window: seconds that a query waits for others at most; 0: only what has arrived meanwhile is taken along.
        max_batch: queries of a batch; 1: one by one.
        max_waiting: queries that may wait; more are refused.
    """

    def __init__(self, window: float = 0.002, max_batch: int = 64, max_waiting: int = 512):
        self.window, self.max_batch, self.max_waiting = window, max_batch, max_waiting
        self.thread = ThreadPoolExecutor(1, "ranking")
        self.batches = self.queries = 0
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._loop: asyncio.Task | None = None

    @property
    def waiting(self) -> int:
        """Queries that no batch holds yet."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to rank, in the running event loop."""
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop ranking; the server calls it when all requests are answered."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        self.thread.shutdown(wait=True)

    async def rank(self, queries: list[Query]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rank queries, all or none: items and scores of each.

        Raises:
            Overloaded: they do not fit into the queue.
        """
        if len(self._waiting) + len(queries) > self.max_waiting:
            raise Overloaded
        loop = asyncio.get_running_loop()
        jobs = [_Waiting(query, query.key, loop.create_future()) for query in queries]
        self._waiting += jobs
        self._arrived.set()
        try:
            return list(await asyncio.gather(*(job.answer for job in jobs)))
        finally:
            for job in jobs:  # a request that timed out frees its places
                job.answer.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if self.window and self.max_batch > 1:
                end = time.monotonic() + self.window
                while len(self._waiting) < self.max_batch and time.monotonic() < end:
                    await asyncio.sleep(self.window / 4)
            batch = self._take()
            if not self._waiting:
                self._arrived.clear()
            if not batch:
                continue
            self.batches, self.queries = self.batches + 1, self.queries + len(batch)
            try:
                lists = await loop.run_in_executor(self.thread, rank_batch, [job.query for job in batch])
            except Exception as error:
                for job in batch:
                    if not job.answer.done():
                        job.answer.set_exception(error)
                continue
            for job, answer in zip(batch, lists, strict=True):
                if not job.answer.done():
                    job.answer.set_result(answer)

    def _take(self) -> list[_Waiting]:
        """Take the query that waits longest, and those of its key whose lengths are nearest."""
        self._waiting = [job for job in self._waiting if not job.answer.done()]
        if not self._waiting:
            return []
        first = self._waiting[0]
        mates = [job for job in self._waiting if job.key == first.key]
        mates.sort(key=lambda job: abs(len(job.query.history) - len(first.query.history)))  # stable: first stays first
        batch = mates[: self.max_batch]
        taken = set(map(id, batch))
        self._waiting = [job for job in self._waiting if id(job) not in taken]
        return batch


def rank_batch(queries: list[Query]) -> list[tuple[Any, Any]]:
    """Rank queries of one key in one batch."""
    first = queries[0]
    histories = [query.history for query in queries]
    items, scores = first.student.rank(histories, first.width, first.exclude_bought, first.items)
    return list(zip(items, scores, strict=True))
