"""A sparse square table of counts in shards of rows, to which counts are added at the cost of the rows that change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

FOLD = 4  # changed rows are folded into the matrix when they hold more than 1/FOLD of its counts


class Row(NamedTuple):
    """A row's columns, ascending, and its counts."""

    columns: np.ndarray
    counts: np.ndarray


class CountTable:
    """Counts [n_items, n_items]: matrices that never change, and beside them the rows that have grown since.

    `add` returns another table, so whoever reads this one in another thread goes on undisturbed. Both share the shards
    and the rows that are equal.

    Args:
        shards: the counts, divided by rows, in order [rows of the shard, n_items]; their arrays may be mapped files.
        changed: rows that replace those of the shards, by number.
        sums: of the rows, changed ones included [n_items]; None: computed when asked for.
        n_changed: how many counts `changed` holds.
    """

    def __init__(
        self,
        shards: Sequence[sp.csr_array],
        changed: dict[int, Row] | None = None,
        sums: np.ndarray | None = None,
        n_changed: int = 0,
    ):
        self._shards, self._changed, self._n_changed = list(shards), changed or {}, n_changed
        self._starts = np.cumsum([0, *(shard.shape[0] for shard in shards)])
        if sums is not None:
            self.sums = sums

    @property
    def n_items(self) -> int:
        """Rows, and columns."""
        return self._shards[0].shape[1]

    @cached_property
    def sums(self) -> np.ndarray:
        """Sum of each row [n_items]."""
        return np.concatenate([np.asarray(shard.sum(1), dtype=float) for shard in self.shards()])

    def shards(self) -> list[sp.csr_array]:
        """Return all counts in shards of rows; the cost follows the counts of the shards in which rows have changed."""
        rows: list[dict[int, Row]] = [{} for _ in self._shards]
        for number, row in self._changed.items():
            shard = int(np.searchsorted(self._starts, number, side="right")) - 1
            rows[shard][number - int(self._starts[shard])] = row
        return [_replace_rows(shard, changed) for shard, changed in zip(self._shards, rows, strict=True)]

    def whole(self) -> sp.csr_array:
        """Return all counts as one matrix [n_items, n_items]."""
        shards = self.shards()
        return shards[0] if len(shards) == 1 else sp.vstack(shards, format="csr")

    def rows(self, numbers: np.ndarray) -> sp.csr_array:
        """Return some rows, in the order of their numbers [rows, n_items]; its cost follows their counts."""
        stored = self._stored_rows(numbers)
        if self._changed.keys().isdisjoint(numbers.tolist()):
            return stored
        columns, counts = stored.indices, stored.data
        rows = [
            self._changed[number] if number in self._changed else Row(columns[start:end], counts[start:end])
            for number, start, end in zip(numbers.tolist(), stored.indptr[:-1], stored.indptr[1:], strict=True)
        ]
        return _matrix(rows, self.n_items)

    def add(self, rows: np.ndarray, columns: np.ndarray, counts: np.ndarray) -> CountTable:
        """Add counts at (row, column), of which a pair may come several times; all [n].

        The cost follows the rows that are named and their counts, beside a copy of `sums` and a shallow one of what has
        changed before. Where much has changed, the shards are made anew, in memory.
        """
        numbers, row = np.unique(rows, return_inverse=True)
        addition = sp.coo_array((counts, (row, columns)), shape=(len(numbers), self.n_items)).tocsr()
        grown = self.rows(numbers) + addition
        grown.eliminate_zeros()
        sums = self.sums.copy()
        sums[numbers] = grown.sum(1)
        changed, n_changed = dict(self._changed), self._n_changed + grown.nnz
        # copies: a slice would keep the arrays of all rows of this call alive
        for place, number in enumerate(numbers.tolist()):
            part = slice(grown.indptr[place], grown.indptr[place + 1])
            n_changed -= len(changed[number].columns) if number in changed else 0
            changed[number] = Row(grown.indices[part].copy(), grown.data[part].copy())
        table = CountTable(self._shards, changed, sums, n_changed)
        stored = sum(shard.nnz for shard in self._shards)
        return CountTable(table.shards(), sums=sums) if FOLD * n_changed > stored else table

    def _stored_rows(self, numbers: np.ndarray) -> sp.csr_array:
        """As `rows`, without what has changed."""
        if len(self._shards) == 1:
            return self._shards[0][numbers]
        shard_of = np.searchsorted(self._starts, numbers, side="right") - 1
        order = np.argsort(shard_of, kind="stable")
        parts = [self._shards[s][numbers[shard_of == s] - self._starts[s]] for s in np.unique(shard_of)]
        return sp.vstack([*parts, self._shards[0][:0]], format="csr")[np.argsort(order)]


def _matrix(rows: Sequence[Row], n_items: int) -> sp.csr_array:
    """Join rows to a matrix [rows, n_items]."""
    offsets = np.cumsum([0, *(len(row.columns) for row in rows)])
    arrays = np.concatenate([row.counts for row in rows]), np.concatenate([row.columns for row in rows]), offsets
    return sp.csr_array(arrays, shape=(len(rows), n_items))


def _replace_rows(matrix: sp.csr_array, rows: Mapping[int, Row]) -> sp.csr_array:
    """Return a matrix with other rows at some places, without copying row by row what stays."""
    if not rows:
        return matrix
    numbers = np.array(sorted(rows))
    lengths = np.diff(matrix.indptr)
    is_changed = np.zeros(matrix.shape[0], dtype=bool)
    is_changed[numbers] = True
    kept = np.repeat(~is_changed, lengths)
    starts = np.concatenate([[0], np.cumsum(np.where(is_changed, 0, lengths))])
    others = sp.csr_array((matrix.data[kept], matrix.indices[kept], starts), shape=matrix.shape)
    grown = _matrix([rows[number] for number in numbers.tolist()], matrix.shape[1])
    lengths = np.zeros(matrix.shape[0], dtype=np.int64)
    lengths[numbers] = np.diff(grown.indptr)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return others + sp.csr_array((grown.data, grown.indices, starts), shape=matrix.shape)
