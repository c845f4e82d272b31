"""Cut a data set into the logs of several days, as an incremental training would meet them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill.data.dataset import Dataset

FIRST_SHARE = 0.6  # of each sequence that lies on the first day
LAUNCHED_LATER = 0.1  # of the items, which later days launch


def split_days(dataset: Dataset, days: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw on which day items are launched, and cut every sequence into days.

    Each day has the same share of a sequence, but for the first, which has `FIRST_SHARE`. What a user did with an item
    before its launch is left out, so that a day only adds to the end of sequences.

    Args:
        dataset: sequences in time order.
        days: at least 2.
        seed: of the items' launches.

    Returns:
        Day of each item's launch [n_items], and of each interaction, -1 where it is left out [interactions]; from 0.
    """
    rng = np.random.default_rng(seed)
    launch = np.zeros(dataset.n_items, dtype=np.int64)
    later = rng.permutation(dataset.n_items)[: round(LAUNCHED_LATER * dataset.n_items)]
    launch[later] = 1 + np.arange(len(later)) % (days - 1)
    lengths = np.diff(dataset.offsets)
    positions = np.arange(len(dataset.values)) - np.repeat(dataset.offsets[:-1], lengths)
    done = positions / np.repeat(lengths, lengths)
    day = np.where(done < FIRST_SHARE, 0, 1 + ((done - FIRST_SHARE) / (1 - FIRST_SHARE) * (days - 1)).astype(np.int64))
    return launch, np.where(launch[dataset.values] <= day, day, -1)


def write_days(dataset: Dataset, days: int, seed: int, folder: Path) -> None:
    """Write `day1`, `day2` and so on: tables of all items and interactions so far, for `prepare_data.py`."""
    launch, day = split_days(dataset, days, seed)
    users = np.repeat(np.arange(dataset.n_users), np.diff(dataset.offsets))
    names, items = dataset.user_ids.to_numpy(zero_copy_only=False), dataset.items["item_id"].to_numpy()
    for number in range(days):
        rows = np.flatnonzero((day >= 0) & (day <= number))
        columns = {"user_id": names[users[rows]], "item_id": items[dataset.values[rows]], "timestamp": rows}
        (folder / f"day{number + 1}").mkdir()
        pq.write_table(pa.table(columns), folder / f"day{number + 1}" / "interactions.parquet")
        pq.write_table(dataset.items.filter(launch <= number), folder / f"day{number + 1}" / "items.parquet")
