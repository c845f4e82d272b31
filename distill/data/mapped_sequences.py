"""Sequences as two NumPy files that are memory-mapped: a process holds the pages that it reads, shared with others.

`sequence_items.npy` holds the item numbers of all sequences, one after the other, int32 [interactions], and
`sequence_starts.npy` the start of each, int64 [users + 1]. They repeat the column `items` of `sequences.parquet`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType

import numpy as np

from distill.runtime.errors import UserError

ITEMS, STARTS = "sequence_items.npy", "sequence_starts.npy"


class SequenceWriter:
    """Writes both files piece by piece, so that the whole need not fit into memory.

    Args:
        folder: an existing folder.
        users, interactions: how many there will be.
    """

    def __init__(self, folder: Path, users: int, interactions: int):
        self._end = 0
        with contextlib.ExitStack() as stack:
            self._items = stack.enter_context(open(folder / ITEMS, "wb"))
            self._starts = stack.enter_context(open(folder / STARTS, "wb"))
            self._files = stack.pop_all()
        for file, dtype, length in ((self._items, "<i4", interactions), (self._starts, "<i8", users + 1)):
            header = {"descr": dtype, "fortran_order": False, "shape": (length,)}
            np.lib.format.write_array_header_1_0(file, header)
        self._starts.write(np.zeros(1, "<i8").tobytes())

    def append(self, values: np.ndarray, lengths: np.ndarray) -> None:
        """Add sequences.

        Args:
            values: their item numbers, one sequence after the other.
            lengths: of each.
        """
        self._items.write(np.ascontiguousarray(values, "<i4").data)
        ends = self._end + np.cumsum(lengths, dtype="<i8")
        self._starts.write(ends.data)
        self._end = int(ends[-1]) if len(ends) else self._end

    def __enter__(self) -> SequenceWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._files.close()


def has_mapped_sequences(folder: Path) -> bool:
    """Tell whether a data set has both files; those of earlier versions have not."""
    return (folder / ITEMS).is_file() and (folder / STARTS).is_file()


def map_sequences(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Map both files into memory, read-only: item numbers, int32 [interactions], and starts, int64 [users + 1].

    Raises:
        UserError: a file is damaged, or both do not belong together.
    """
    values, starts = _map(folder / ITEMS, np.dtype("<i4")), _map(folder / STARTS, np.dtype("<i8"))
    if not len(starts) or starts[0] != 0 or starts[-1] != len(values) or (starts[1:] < starts[:-1]).any():
        raise UserError(
            f"{folder / STARTS} is damaged: its starts do not divide the {len(values):,} interactions of {ITEMS}. "
            "Make the data set again with --overwrite."
        )
    return values, starts


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python: a damaged one may raise any error of a parser
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is not a readable NumPy file ({reason}). Copy it again.") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != dtype:
        raise UserError(f"{path} is damaged: expected {dtype.name} [n]. Make the data set again with --overwrite.")
    return array.view(np.ndarray)  # slices of a memmap would be memmaps too
