"""Interactions in DuckDB: ids to numbers, and rows in the order of users and times, in bounded memory."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distill.data.out_of_core.catalogue import number_items
from distill.data.out_of_core.chunks import Loaded
from distill.data.sources.base import Options
from distill.data.sources.blocks import InteractionBlocks
from distill.runtime.errors import UserError

BATCH_ROWS = 1 << 18  # rows that are fetched at once
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
OUT_OF_MEMORY = "Out of Memory|could not allocate|failed to (allocate|offload|pin)"
MIN_BYTES = 750 * 10**6
PYTHON_BYTES = 250 * 10**6  # of the limit: the interpreter, its libraries, blocks of rows
DUCKDB_SHARE = 0.8  # of the rest; DuckDB exceeds its limit by what it does not count (measured: up to 20%)


def memory_bytes(text: str) -> int:
    """Read a memory limit such as 4GB or 512MiB.

    Raises:
        UserError: not of this form, or too small to work with.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMGT]I?)?B", text.strip().upper())
    if not match:
        raise UserError(f"memory_limit: expected a size such as 4GB or 2500MB, got {text!r}.")
    size = int(float(match[1]) * UNITS[match[2] or ""])
    if size < MIN_BYTES:
        raise UserError(f"memory_limit: expected at least {MIN_BYTES // 10**6}MB, got {text}.")
    return size


def import_duckdb() -> Any:
    """Import DuckDB, an extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise UserError(
            "--engine duckdb needs DuckDB: pip install -c constraints.txt -e '.[duckdb]', or use --engine memory."
        ) from None
    return duckdb


class Database:
    """A log of interactions in a DuckDB file, with its temporary files beside it.

    Args:
        folder: exists and holds nothing else; the caller deletes it.
        memory_limit: as the user wrote it.

    Raises:
        UserError: DuckDB is not installed; all methods: the memory limit is too small.
    """

    def __init__(self, folder: Path, memory_limit: str):
        self.duckdb = import_duckdb()
        self.memory_limit = memory_limit
        settings = {
            "memory_limit": f"{self._duckdb_megabytes()}MB",
            "temp_directory": str(folder / "spilled"),
            "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "preserve_insertion_order": False,  # rows carry their number; keeping an order costs memory
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        with self._errors():
            self.connection = self.duckdb.connect(str(folder / "interactions.duckdb"), config=settings)

    def _duckdb_megabytes(self) -> int:
        return max(1, int((memory_bytes(self.memory_limit) - PYTHON_BYTES) * DUCKDB_SHARE) // 10**6)

    def close(self) -> None:
        """Close the file and free its memory."""
        self.connection.close()

    def load(self, blocks: InteractionBlocks, options: Options) -> Loaded:
        """Read all interactions and number their ids.

        Raises:
            UserError: what the readers refuse.
        """
        columns = "row_number BIGINT, user_id VARCHAR, item_id VARCHAR, time DOUBLE, is_kept BOOLEAN"
        self._run(f"CREATE TABLE interactions ({columns})")
        n_rows = n_low = 0
        for block in blocks:
            n = len(block.users)
            is_kept = np.ones(n, dtype=bool) if block.ratings is None else block.ratings >= options.min_rating
            rows = {
                "row_number": pa.array(np.arange(block.first_row, block.first_row + n)),
                "user_id": block.users,
                "item_id": block.items,
                "time": pa.array(np.zeros(n) if block.times is None else block.times),
                "is_kept": pa.array(is_kept),
            }
            self._insert("INSERT INTO interactions", rows)
            n_rows, n_low = n_rows + n, n_low + n - int(is_kept.sum())
        items = self._number_items(blocks)
        blocks.check_numbers()
        self._run(
            "CREATE TABLE users AS SELECT user_id, min(row_number) AS first_row FROM interactions GROUP BY user_id"
        )
        return Loaded(items, n_rows, n_low)

    def _number_items(self, blocks: InteractionBlocks) -> pa.Table:
        """Make the table `items` (item_id, number) and return the catalogue."""
        with self._errors():
            appearances = self.connection.sql(
                "SELECT item_id, min(row_number) AS first_row, count(*) AS n FROM interactions GROUP BY item_id"
            ).to_arrow_table()
        items, ids, numbers = number_items(blocks, appearances)
        self._insert("CREATE TABLE items AS", {"item_id": ids, "number": pa.array(numbers, pa.int32())})
        return items

    def sorted_rows(self, has_times: bool) -> Iterator[pa.RecordBatch]:
        """Yield the kept interactions by user, time and row: user (number of the user's first row), item, time."""
        time = "time, " if has_times else ""
        yield from self._batches(
            "SELECT first_row AS user, number AS item, time "
            "FROM interactions JOIN users USING (user_id) JOIN items USING (item_id) "
            f"WHERE is_kept ORDER BY first_row, {time}row_number"
        )

    def drop_interactions(self) -> None:
        """Give up the interactions, which are read no more, and half of the memory, for the work on chunks."""
        self._run("DROP TABLE interactions")
        self._run(f"SET memory_limit = '{max(1, self._duckdb_megabytes() // 2)}MB'")

    def user_ids(self, users: np.ndarray) -> Iterator[pa.Table]:
        """Yield the ids (user_id) of users, given by the numbers of their first rows (ascending), in batches."""
        for batch in self._batches("SELECT user_id, first_row FROM users ORDER BY first_row"):
            first_rows = batch["first_row"].to_numpy()
            place = np.minimum(np.searchsorted(users, first_rows), len(users) - 1)
            yield pa.table(batch.select(["user_id"]).filter(pa.array(users[place] == first_rows)))

    def user_id(self, user: int) -> str:
        """Return the id of one user, given by the number of the first row."""
        return self.connection.execute("SELECT user_id FROM users WHERE first_row = ?", [user]).fetchone()[0]

    def _batches(self, query: str) -> Iterator[pa.RecordBatch]:
        with self._errors():
            yield from self.connection.sql(query).to_arrow_reader(BATCH_ROWS)

    def _insert(self, statement: str, columns: dict[str, Any]) -> None:
        """Run a statement that ends with these columns."""
        with self._errors():
            self.connection.register("block", pa.table(columns))
            self.connection.execute(f"{statement} SELECT * FROM block")
            self.connection.unregister("block")

    def _run(self, statement: str) -> None:
        with self._errors():
            self.connection.execute(statement)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn DuckDB's errors of memory into one message, and those of its temporary files into a full disk."""
        try:
            yield
        except (self.duckdb.Error, pa.ArrowException, OSError) as error:
            # in a commit it is an error of the transaction; while rows are fetched, one of Arrow
            if not re.search(OUT_OF_MEMORY, str(error)):
                raise
            if "max_temp_directory_size" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise UserError(
                f"--memory_limit {self.memory_limit} is too small for these interactions. Give more, for example "
                f"--memory_limit {2 * memory_bytes(self.memory_limit) / 10**9:g}GB."
            ) from None
