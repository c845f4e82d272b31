"""`lists.parquet`: the ranked items of each system for each user, written by an evaluation beside its figures."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill.data.dataset import PAD, Examples
from distill.runtime.errors import UserError
from distill.runtime.parquet import number_lists, read_parquet, whole_numbers

ASKED = ("user", "target", "history")  # columns that are not systems


class RankedLists(NamedTuple):
    """Users and targets [users], and ranked items of each system, -1 for none [users, width]."""

    users: np.ndarray
    targets: np.ndarray
    lists: dict[str, np.ndarray]

    def same_users(self, others: RankedLists) -> bool:
        """Tell whether both have the same users and targets in the same order, so that they can be compared."""
        return np.array_equal(self.users, others.users) and np.array_equal(self.targets, others.targets)


def write_ranked_lists(path: Path, examples: Examples, lists: dict[str, np.ndarray]) -> None:
    """Write one row for each user: user, target, history, and the ranked items of each system."""
    histories = [row[row != PAD].tolist() for row in examples.histories]
    columns = {
        "user": pa.array(examples.users, pa.int32()),
        "target": pa.array(examples.targets, pa.int32()),
        "history": pa.array(histories, pa.list_(pa.int32())),
    }
    columns |= {name: pa.array(items.tolist(), pa.list_(pa.int32())) for name, items in lists.items()}
    pq.write_table(pa.table(columns), path)


def read_ranked_lists(path: Path) -> RankedLists:
    """Read what `write_ranked_lists` wrote, without the histories.

    Raises:
        UserError: missing or damaged file.
    """
    table = read_parquet(path, ASKED)
    if not len(table):
        raise UserError(f"{path} is damaged: it holds no users. Make the evaluation again with --overwrite.")
    lists = {}
    for name in table.column_names:
        if name not in ASKED:
            values, offsets = number_lists(table, name, path)
            lengths = np.diff(offsets)
            lists[name] = np.full((len(lengths), max(1, lengths.max())), PAD)
            lists[name][np.arange(lists[name].shape[1]) < lengths[:, None]] = values
    return RankedLists(whole_numbers(table, "user", path), whole_numbers(table, "target", path), lists)
