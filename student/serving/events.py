"""New interactions on disk: an event that was acknowledged survives the death of the process and of the machine."""

from __future__ import annotations

import sqlite3
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from distill.runtime.errors import UserError
from student.transition_memory import TransitionMemory


class NewEvent(NamedTuple):
    """An interaction; `event_id` names it, so that sending it again stores it once."""

    user_id: str
    item_id: str
    event_id: str | None = None


class Stored(NamedTuple):
    """How many events were new, and the number of the last event in the store."""

    new: int
    last_event: int


class EventStore:
    """An append-only SQLite file; safe from several threads, for one process.

    It also knows which of its events a data set holds already, by the data set's fingerprint: a student's own memory
    has counted these.

    Args:
        path: the file; made where there is none.

    Raises:
        UserError: the file cannot be opened or is no store of events.
    """

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")  # each commit waits for the disk
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._make_tables()
            self._database.execute("SELECT id, user_id, item_id, event_id FROM events LIMIT 1")
        except sqlite3.Error as error:
            raise UserError(f"{path} cannot be used as store of events ({error}); name another by --events.") from None

    def _make_tables(self) -> None:
        execute = self._database.execute
        execute(
            "CREATE TABLE IF NOT EXISTS events "
            "(id INTEGER PRIMARY KEY, user_id TEXT NOT NULL, item_id TEXT NOT NULL, event_id TEXT)"
        )
        if "event_id" not in [column[1] for column in execute("PRAGMA table_info(events)")]:
            execute("ALTER TABLE events ADD COLUMN event_id TEXT")  # a store of an earlier version
        execute("CREATE UNIQUE INDEX IF NOT EXISTS event_ids ON events (event_id) WHERE event_id IS NOT NULL")
        execute("CREATE TABLE IF NOT EXISTS counted (dataset TEXT PRIMARY KEY, last_event INTEGER NOT NULL)")

    @property
    def last_event(self) -> int:
        """The last event's number, 0 where there is none."""
        with self._lock:
            return self._last()

    def append(self, events: Sequence[NewEvent]) -> Stored:
        """Write events, all or none, and return once they are on disk; those whose `event_id` is known are left out.

        Raises:
            OSError: the disk refuses them; none of them is stored.
        """
        with self._lock:
            try:
                with self._database:
                    self._database.execute("BEGIN")
                    before = self._database.total_changes
                    self._database.executemany(
                        "INSERT INTO events (user_id, item_id, event_id) VALUES (?, ?, ?) "
                        "ON CONFLICT (event_id) WHERE event_id IS NOT NULL DO NOTHING",
                        events,
                    )
                    return Stored(self._database.total_changes - before, self._last())
            except sqlite3.Error as error:
                raise OSError(f"events were not stored: {error}") from error

    def after(self, number: int) -> list[tuple[int, str, str]]:
        """Read the events after a number, in order: number, user id, item id."""
        with self._lock:
            rows = self._database.execute("SELECT id, user_id, item_id FROM events WHERE id > ? ORDER BY id", (number,))
            return rows.fetchall()

    def counted_events(self, dataset: str) -> int | None:
        """Return the last event that a data set holds; None where nobody has said."""
        with self._lock:
            row = self._database.execute("SELECT last_event FROM counted WHERE dataset = ?", (dataset,)).fetchone()
            return None if row is None else row[0]

    def set_counted_events(self, dataset: str, last_event: int) -> None:
        """Remember the last event that a data set holds.

        Raises:
            UserError: there is no such event.
            OSError: the disk refuses it.
        """
        with self._lock:
            if not 0 <= last_event <= self._last():
                raise UserError(f"counted_events is {last_event}; the store has the events 1 to {self._last()}.")
            try:
                self._database.execute(
                    "INSERT OR REPLACE INTO counted (dataset, last_event) VALUES (?, ?)", (dataset, last_event)
                )
            except sqlite3.Error as error:
                raise OSError(f"the store was not written: {error}") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _last(self) -> int:
        return self._database.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0]


class GrowingMemory:
    """A student's transition memory and how far it has read a store; growing at once or in steps gives the same.

    A user's first event follows nothing: transitions are those between events of the store.

    Args:
        memory: as the student's folder has it.
        numbers: item id to item number; events of other items are left out.
        counted_events: the last event that `memory` has counted already; later events follow these without counting
            them again.
    """

    def __init__(self, memory: TransitionMemory, numbers: dict[str, int], counted_events: int = 0):
        self.memory, self.counted_events, self.last_event = memory, counted_events, 0
        self._numbers, self._recent = numbers, defaultdict(list)

    def read(self, store: EventStore) -> TransitionMemory:
        """Count the store's new events and return the grown memory."""
        items_of: dict[str, list[int]] = defaultdict(list)
        n_new: dict[str, int] = defaultdict(int)
        events = store.after(self.last_event)
        for number, user, item in events:
            if item in self._numbers:
                items_of[user].append(self._numbers[item])
                n_new[user] += number > self.counted_events
        sequences = [self._recent[user] + items for user, items in items_of.items()]
        if any(n_new.values()):
            self.memory = self.memory.grow(sequences, [n_new[user] for user in items_of])
        for user, sequence in zip(items_of, sequences, strict=True):
            self._recent[user] = sequence[-self.memory.settings.window :]
        if events:
            self.last_event = events[-1][0]
        return self.memory
