"""The embeddings artifact: `embeddings.safetensors` float32 [n_items, dim], row = item number, and whose rows they are.

`items.parquet` names each row's item; `space.json` (and for TF-IDF `terms.json` and `tfidf.safetensors`) holds what is
needed to embed items that come later in the same space.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from distill.runtime.commands import command_for
from distill.runtime.errors import UserError
from distill.runtime.parquet import read_parquet

FILE = "embeddings.safetensors"
CHUNK = 1 << 16  # rows looked at together


def write(folder: Path, embeddings: np.ndarray, item_ids: list[str]) -> None:
    """Write embeddings [n_items, dim] and whose they are."""
    save_file({"embeddings": np.ascontiguousarray(embeddings, dtype=np.float32)}, folder / FILE)
    pq.write_table(pa.table({"item_id": pa.array(item_ids, pa.string())}), folder / "items.parquet")


def item_ids(folder: Path) -> list[str]:
    """Item ids of the rows.

    Raises:
        UserError: missing or damaged.
    """
    return read_parquet(folder / "items.parquet", ("item_id",))["item_id"].to_pylist()


def load(folder: Path, names: list[str]) -> np.ndarray:
    """The embeddings of the items `names` as a memory map [n_items, dim]; every row is looked at, none is kept.

    Raises:
        UserError: damaged, of another number of items, or with rows that are not finite or zero.
    """
    path = folder / FILE
    embeddings = memory_map(path)
    if len(embeddings) != len(names):
        raise UserError(f"{path} has shape {list(embeddings.shape)}, the data set has {len(names)} items.")
    again = f"Make the embeddings again: {command_for('embeddings', folder)} --overwrite"
    for start in range(0, len(names), CHUNK):
        squares = np.square(embeddings[start : start + CHUNK]).sum(axis=1)
        for bad, fault in ((~np.isfinite(squares), "holds NaN or infinity"), (squares == 0, "is zero")):
            if bad.any():
                rows = start + np.flatnonzero(bad)
                more = f" (and those of {len(rows) - 1} more items near it)" if len(rows) > 1 else ""
                raise UserError(f"{path}: the embedding of item {rows[0]} ({names[rows[0]]!r}) {fault}{more}. {again}")
    return embeddings


def memory_map(path: Path) -> np.ndarray:
    """The tensor `embeddings` of a safetensors file, read-only, float32 [n, dim], not read before it is used.

    Raises:
        UserError: not such a file, or truncated.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 1 << 20:
                raise ValueError("no header")
            entry = json.loads(file.read(length))["embeddings"]
        if entry["dtype"] != "F32" or len(entry["shape"]) != 2:
            raise ValueError(f"expected float32 [items, dim], found {entry['dtype']} {entry['shape']}")
        return np.memmap(path, np.float32, "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}); {command_for('embeddings', path.parent)} --overwrite"
        ) from None
