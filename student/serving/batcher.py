"""Dynamic batching: requests that arrive while the ranker is busy are ranked together, by similar length."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from student.serving.filters import AllowedItems
from student.serving.served_student import ServedStudent


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
        allowed: the items to which the list is restricted; None: all.
    """

    student: ServedStudent
    history: list[int]
    width: int
    exclude_bought: bool
    allowed: AllowedItems | None = None

    @property
    def key(self) -> Hashable:
        """Queries of one key can be ranked in one batch."""
        return id(self.student), self.width, self.exclude_bought, id(self.allowed)

    @property
    def length(self) -> int:
        """Queries of near lengths are ranked together."""
        return len(self.history)


@dataclass(frozen=True)
class Task:
    """Other work for the ranking thread, of which no batch is made: an explanation, an item's neighbours."""

    work: Callable[[], Any]
    length = 0

    @property
    def key(self) -> Hashable:
        """A key that no other task has."""
        return id(self)


@dataclass
class _Waiting:
    job: Query | Task
    answer: asyncio.Future = field(repr=False)


class Batcher:
    """Collects queries and ranks them in batches, in a thread of its own.

    An idle ranker begins at once. Under load it waits, at most `window`, until as many have arrived as were asked for
    when the last batch ended: clients that ask again as soon as they have their list come together then.

    Args:
        window: seconds that a query waits for others at most; 0: only what has arrived meanwhile is taken along.
        max_batch: queries of a batch; 1: one by one.
        max_waiting: queries and tasks that may wait; more are refused.
    """

    def __init__(self, window: float = 0.002, max_batch: int = 64, max_waiting: int = 512):
        self.window, self.max_batch, self.max_waiting = window, max_batch, max_waiting
        self.thread = ThreadPoolExecutor(1, "ranking")
        self.batches = self.queries = 0
        self._expected = 1
        self._waiting: list[_Waiting] = []
        self._arrived, self._enough = asyncio.Event(), asyncio.Event()
        self._loop: asyncio.Task | None = None

    @property
    def waiting(self) -> int:
        """Queries and tasks that no batch holds yet."""
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

    async def run(self, jobs: Sequence[Query | Task]) -> list[Any]:
        """Run jobs, all or none: items and scores of each query, the result of each task.

        Raises:
            Overloaded: they do not fit into the queue.
        """
        if len(self._waiting) + len(jobs) > self.max_waiting:
            raise Overloaded
        loop = asyncio.get_running_loop()
        entries = [_Waiting(job, loop.create_future()) for job in jobs]
        self._waiting += entries
        self._arrived.set()
        if self.waiting >= self._expected:
            self._enough.set()
        try:
            return list(await asyncio.gather(*(entry.answer for entry in entries)))
        finally:
            for entry in entries:
                entry.answer.cancel()
            self._forget_cancelled()  # a request that timed out frees its places

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            await self._wait_for_others()
            batch = self._take()
            if not self._waiting:
                self._arrived.clear()
            if not batch:
                continue
            self.batches, self.queries = self.batches + 1, self.queries + len(batch)
            try:
                answers = await loop.run_in_executor(self.thread, run_batch, [entry.job for entry in batch])
            except Exception as error:
                for entry in batch:
                    if not entry.answer.done():
                        entry.answer.set_exception(error)
            else:
                for entry, answer in zip(batch, answers, strict=True):
                    if not entry.answer.done():
                        entry.answer.set_result(answer)
            self._expected = min(self.max_batch, len(batch) + self.waiting)

    async def _wait_for_others(self) -> None:
        if self.window and self.waiting < self._expected:
            self._enough.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._enough.wait(), self.window)

    def _take(self) -> list[_Waiting]:
        """Take the job that waits longest, and those of its key whose lengths are nearest."""
        if not self._waiting:
            return []
        first = self._waiting[0]
        key, length = first.job.key, first.job.length
        mates = [entry for entry in self._waiting if entry.job.key == key]
        mates.sort(key=lambda entry: abs(entry.job.length - length))  # stable: first stays first
        batch = mates[: self.max_batch]
        batched = set(map(id, batch))
        self._waiting = [entry for entry in self._waiting if id(entry) not in batched]
        return batch

    def _forget_cancelled(self) -> None:
        self._waiting = [entry for entry in self._waiting if not entry.answer.cancelled()]


def run_batch(jobs: Sequence[Query | Task]) -> list[Any]:
    """Run a task, or rank queries of one key in one batch."""
    first = jobs[0]
    if isinstance(first, Task):
        return [first.work()]
    histories = [query.history for query in jobs]
    items, scores = first.student.rank(histories, first.width, first.exclude_bought, first.allowed)
    return list(zip(items, scores, strict=True))
