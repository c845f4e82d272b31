"""Reading parquet files with one clear message where they are damaged."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distill.runtime.errors import UserError


def read_parquet(path: Path, columns: tuple[str, ...]) -> pa.Table:
    """Read a parquet file that must hold the given columns.

    Raises:
        UserError: missing, truncated, or without one of the columns.
    """
    try:
        table = pq.ParquetFile(path).read()  # read_table would import pandas first
    except FileNotFoundError:
        raise UserError(f"Missing file {path}; its artifact is damaged, make it again with --overwrite.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]}).") from None
    for name in columns:
        if name not in table.column_names:
            raise UserError(f"{path} has no column {name!r}; it has {', '.join(table.column_names)}.")
    return table
