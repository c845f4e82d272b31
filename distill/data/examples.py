"""Examples, (history, next item) pairs, and the targets of a split as ranges, from which examples are made in parts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

PAD = -1  # fills histories on the right
BLOCK = 1 << 16  # histories that are gathered at once


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
        """Select the examples at `rows`."""
        return Examples(self.users[rows], self.positions[rows], self.histories[rows], self.targets[rows])


@dataclass(frozen=True)
class TargetRanges:
    """The targets of a split, user by user, in time order: a range of positions in each user's sequence.

    They take 24 bytes a user, however many targets there are; `take` makes the examples of some of them.

    Attributes:
        values: item numbers of all sequences, one after the other [interactions].
        offsets: start of each sequence in `values` [users of the data set + 1].
        users: user numbers with a target or more, ascending [users].
        starts: position of each user's first target [users].
        ends: targets of the users up to and with this one [users].
        max_history: last items of a history that an example has.
    """

    values: np.ndarray
    offsets: np.ndarray
    users: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    max_history: int

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def counts(self) -> np.ndarray:
        """Targets of each user [users]."""
        return np.diff(self.ends, prepend=0)

    def take(self, rows: np.ndarray | slice) -> Examples:
        """Make the examples of targets with these numbers, in their order."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        place = np.searchsorted(self.ends, rows, side="right")
        users = self.users[place]
        positions = rows - self._first(place) + self.starts[place]
        del place
        histories = np.empty((len(rows), self.max_history), np.int64)
        for start in range(0, len(rows), BLOCK):
            part = slice(start, start + BLOCK)
            histories[part] = self._histories(users[part], positions[part])
        return Examples(users, positions, histories, self.values[self.offsets[users] + positions].astype(np.int64))

    def find(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Look up the numbers of targets by user number and position; -1 where it is none of these [n]."""
        if not len(self):
            return np.full(len(users), -1)
        place = np.minimum(np.searchsorted(self.users, users), len(self.users) - 1)
        rows = self._first(place) + positions - self.starts[place]
        exists = (self.users[place] == users) & (positions >= self.starts[place]) & (rows < self.ends[place])
        return np.where(exists, rows, -1)

    def of_users(self, first: float, end: float) -> TargetRanges:
        """Keep the targets of the users numbered from `first` to before `end`."""
        keep = (self.users >= first) & (self.users < end)
        return replace(self, users=self.users[keep], starts=self.starts[keep], ends=np.cumsum(self.counts[keep]))

    def head(self, limit: int | None) -> TargetRanges:
        """Keep the first `limit` targets; None: all."""
        if limit is None or limit >= len(self):
            return self
        n_users = int(np.searchsorted(self.ends, limit)) + 1
        ends = np.minimum(self.ends[:n_users], limit)
        return replace(self, users=self.users[:n_users], starts=self.starts[:n_users], ends=ends)

    def _first(self, place: np.ndarray) -> np.ndarray:
        """Number of the first target of the users at these places [n]; looks at no other users."""
        return np.where(place > 0, self.ends[place - 1], 0)

    def _histories(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Gather the items before positions of sequences [n, max_history]."""
        lengths = np.minimum(positions, self.max_history)
        column = np.arange(self.max_history)
        index = (self.offsets[users] + positions - lengths)[:, None] + column
        histories = self.values[np.minimum(index, len(self.values) - 1)].astype(np.int64)
        histories[column >= lengths[:, None]] = PAD
        return histories


def ragged_range(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row i repeated `counts[i]` times, and the numbers 0, 1, … within each row; both [sum of counts]."""
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
