"""New interactions on disk: an event that was acknowledged survives the death of the process and of the machine."""

from __future__ import annotations

import sqlite3
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from distill.runtime.errors import UserError
from student.transition_memory import TransitionMemory

Event = tuple[str, str]  # user id, item id


class EventStore:
    """An append-only SQLite file; safe from several threads, for one process.

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
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS events "
                "(id INTEGER PRIMARY KEY, user_id TEXT NOT NULL, item_id TEXT NOT NULL)"
            )
            self._database.execute("SELECT id, user_id, item_id FROM events LIMIT 1")
        except sqlite3.Error as error:
            raise UserError(f"{path} cannot be used as store of events ({error}); name another by --events.") from None

    def append(self, events: Sequence[Event]) -> int:
        """Write events, all or none, and return the last one's number once they are on disk.

        Raises:
            OSError: the disk refuses them; none of them is stored.
        """
        with self._lock:
            try:
                with self._database:
                    self._database.execute("BEGIN")
                    self._database.executemany("INSERT INTO events (user_id, item_id) VALUES (?, ?)", events)
                    return self._last()
            except sqlite3.Error as error:
                raise OSError(f"events were not stored: {error}") from error

    def after(self, number: int) -> list[tuple[int, str, str]]:
        """Read the events after a number, in order: number, user id, item id."""
        with self._lock:
            rows = self._database.execute("SELECT id, user_id, item_id FROM events WHERE id > ? ORDER BY id", (number,))
            return rows.fetchall()

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
    """

    def __init__(self, memory: TransitionMemory, numbers: dict[str, int]):
        self.memory, self.last_event = memory, 0
        self._numbers, self._recent = numbers, defaultdict(list)

    def read(self, store: EventStore) -> TransitionMemory:
        """Count the store's new events and return the grown memory."""
        new: dict[str, list[int]] = defaultdict(list)
        events = store.after(self.last_event)
        for _, user, item in events:
            if item in self._numbers:
                new[user].append(self._numbers[item])
        sequences = [self._recent[user] + items for user, items in new.items()]
        if sequences:
            self.memory = self.memory.grow(sequences, [len(items) for items in new.values()])
        for user, sequence in zip(new, sequences, strict=True):
            self._recent[user] = sequence[-self.memory.settings.window :]
        if events:
            self.last_event = events[-1][0]
        return self.memory
