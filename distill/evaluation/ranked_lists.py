"""What an evaluation keeps beside its figures: whom each system recommended what (`lists.parquet`)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill.data.dataset import PAD, Examples
from distill.runtime.parquet import read_parquet

ASKED = ("user", "target", "history")  # the columns that are no system


class RankedLists(NamedTuple):
    """Users and targets [users], and the ranked items of each system, -1 for none [users, width]."""

    users: np.ndarray
    targets: np.ndarray
    lists: dict[str, np.ndarray]

    def same_users(self, others: RankedLists) -> bool:
        """Whether both answer the same questions, so that they can be compared user by user."""
        return np.array_equal(self.users, others.users) and np.array_equal(self.targets, others.targets)


def write_ranked_lists(path: Path, examples: Examples, lists: dict[str, np.ndarray]) -> None:
    """One row a user: user, target, history, and each system's top items."""
    histories = [row[row != PAD].tolist() for row in examples.histories]
    columns = {
        "user": pa.array(examples.users, pa.int32()),
        "target": pa.array(examples.targets, pa.int32()),
        "history": pa.array(histories, pa.list_(pa.int32())),
    }
    columns |= {name: pa.array(items.tolist(), pa.list_(pa.int32())) for name, items in lists.items()}
    pq.write_table(pa.table(columns), path)


def read_ranked_lists(path: Path) -> RankedLists:
    """What `write_ranked_lists` wrote, without the histories.

    Raises:
        UserError: missing or damaged file.
    """
    table = read_parquet(path, ASKED)
    lists = {}
    for name in table.column_names:
        if name not in ASKED:
            column = table[name].combine_chunks()
            lengths = column.value_lengths().to_numpy(zero_copy_only=False)
            lists[name] = np.full((len(lengths), max(lengths, default=0)), PAD)
            lists[name][np.arange(lists[name].shape[1]) < lengths[:, None]] = column.flatten().to_numpy()
    return RankedLists(table["user"].to_numpy(), table["target"].to_numpy(), lists)
