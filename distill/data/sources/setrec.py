"""SETRec's public splits: `training_dict.npy`, `validation_dict.npy` and `testing_dict.npy` (user -> item numbers in
time order), and beside them, optional, `NAME.item.json` (number -> title, description, brand, categories).

The parts are those of a global time cut. There are no times.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distill.data.sources.base import Options, Source, find_file
from distill.data.sources.lcrec import check_gaps, load_object, read_texts
from distill.data.sources.numpy_objects import read_dictionary
from distill.runtime.errors import UserError

PARTS = ("training_dict.npy", "validation_dict.npy", "testing_dict.npy")
LARGEST = 2**31  # numbers of users and items are smaller


def files(folder: Path, options: Options) -> list[Path]:
    """List the files that `read` would read.

    Raises:
        UserError: no folder, a part is missing, or texts of several data sets.
    """
    paths = [find_file(folder, name) for name in PARTS]
    return [path for path in (*paths, find_file(folder, "*.item.json", needed=False)) if path]


def read(folder: Path, options: Options) -> Source:
    """Read a folder.

    Raises:
        UserError: as `files`; files that hold other than numbers, items without text, no interactions.
    """
    paths = files(folder, options)
    parts = [read_part(path) for path in paths[: len(PARTS)]]
    users = list(dict.fromkeys(itertools.chain.from_iterable(parts)))
    rows = [part.get(user, []) for user in users for part in parts]
    lengths = np.array([len(row) for row in rows], dtype=np.int64).reshape(len(users), len(PARTS))
    values = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64)
    if not len(values):
        raise UserError(f"{paths[0]}: no user has an item; expected user -> item numbers.")
    numbers = np.tile(np.arange(len(PARTS), dtype=np.int8), len(users))
    catalogue = paths[len(PARTS)] if len(paths) > len(PARTS) else None
    texts = load_object(catalogue) if catalogue else {}
    count = max(int(values.max()) + 1, len(texts))
    if not texts:
        check_gaps(paths[0], count, len(values), "NAME.item.json")
    items = {"item_id": pa.array([str(number) for number in range(count)], pa.string())}
    if catalogue:
        items |= read_texts(catalogue, texts, items["item_id"], options)
    return Source(
        pa.table(items),
        pa.array([str(user) for user in users], pa.string()),
        values,
        np.concatenate([[0], np.cumsum(lengths.sum(1))]),
        origin=str(folder),
        parts=np.repeat(numbers, lengths.ravel()),
    )


def read_part(path: Path) -> dict[int, list[int]]:
    """Read one part: user number -> item numbers in time order.

    Raises:
        UserError: other than such a dictionary.
    """
    part = {}
    for user, row in read_dictionary(path).items():
        if not is_number(user) or not isinstance(row, list | tuple) or not all(map(is_number, row)):
            raise UserError(f"{path}: expected user numbers with lists of item numbers, got {user!r}: {str(row)[:60]}.")
        part[user] = list(row)
    return part


def is_number(value: Any) -> bool:
    """Tell whether a value can be the number of a user or an item."""
    return type(value) is int and 0 <= value < LARGEST
