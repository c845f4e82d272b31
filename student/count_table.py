"""A sparse square table of counts, to which counts are added at the cost of the rows that change."""

from __future__ import annotations

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
    """Counts [n_items, n_items]: a matrix that never changes, and beside it the rows that have grown since.

    `add` returns another table, so whoever reads this one in another thread goes on undisturbed. Both share the matrix
    and the rows that are equal.

    Args:
        matrix: the counts.
        changed: rows that replace the matrix's, by number.
        sums: of the rows, changed ones included [n_items]; None: computed when asked for.
        n_changed: how many counts `changed` holds.
    """

    def __init__(
        self,
        matrix: sp.csr_array,
        changed: dict[int, Row] | None = None,
        sums: np.ndarray | None = None,
        n_changed: int = 0,
    ):
        self._matrix, self._changed, self._n_changed = matrix, changed or {}, n_changed
        if sums is not None:
            self.sums = sums

    @property
    def n_items(self) -> int:
        """Rows, and columns."""
        return self._matrix.shape[0]

    @cached_property
    def sums(self) -> np.ndarray:
        """Sum of each row [n_items]."""
        return np.asarray(self.whole().sum(1), dtype=float)

    def whole(self) -> sp.csr_array:
        """Return all counts as one matrix [n_items, n_items]; its cost follows their number where rows have changed."""
        if not self._changed:
            return self._matrix
        numbers = np.array(sorted(self._changed))
        lengths = np.diff(self._matrix.indptr)
        is_changed = np.zeros(self.n_items, dtype=bool)
        is_changed[numbers] = True
        kept = np.repeat(~is_changed, lengths)
        starts = np.concatenate([[0], np.cumsum(np.where(is_changed, 0, lengths))])
        others = sp.csr_array((self._matrix.data[kept], self._matrix.indices[kept], starts), shape=self._matrix.shape)
        grown = self.rows(numbers)
        lengths = np.zeros(self.n_items, dtype=np.int64)
        lengths[numbers] = np.diff(grown.indptr)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return others + sp.csr_array((grown.data, grown.indices, starts), shape=self._matrix.shape)

    def rows(self, numbers: np.ndarray) -> sp.csr_array:
        """Return some rows, in the order of their numbers [rows, n_items]; its cost follows their counts."""
        if self._changed.keys().isdisjoint(numbers.tolist()):
            return self._matrix[numbers]
        starts, ends = self._matrix.indptr[numbers].tolist(), self._matrix.indptr[numbers + 1].tolist()
        columns, counts = self._matrix.indices, self._matrix.data
        rows = [
            self._changed[number] if number in self._changed else Row(columns[start:end], counts[start:end])
            for number, start, end in zip(numbers.tolist(), starts, ends, strict=True)
        ]
        offsets = np.cumsum([0, *(len(row.columns) for row in rows)])
        arrays = np.concatenate([row.counts for row in rows]), np.concatenate([row.columns for row in rows]), offsets
        return sp.csr_array(arrays, shape=(len(numbers), self.n_items))

    def add(self, rows: np.ndarray, columns: np.ndarray, counts: np.ndarray) -> CountTable:
        """Add counts at (row, column), of which a pair may come several times; all [n].

        The cost follows the rows that are named and their counts, beside a copy of `sums` and a shallow one of what has
        changed before. Where much has changed, everything becomes one matrix again.
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
        table = CountTable(self._matrix, changed, sums, n_changed)
        return CountTable(table.whole(), sums=sums) if FOLD * n_changed > self._matrix.nnz else table
