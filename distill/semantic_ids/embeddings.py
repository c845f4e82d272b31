"""Files of the embeddings artifact.

`embeddings.safetensors` holds float32 [n_items, dim], row = item number; `items.parquet` names the item of each row.
`space.json` (and for TF-IDF `terms.json` and `tfidf.safetensors`) holds what is needed to embed later items in the same
space.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from distill.runtime.artifacts import Artifact
from distill.runtime.commands import command_for
from distill.runtime.errors import UserError
from distill.runtime.parquet import id_column, read_parquet

FILE = "embeddings.safetensors"
CHUNK = 1 << 16  # rows checked at once


def write(folder: Path, embeddings: np.ndarray, item_ids: list[str]) -> None:
    """Write embeddings [n_items, dim] and the ids of their items."""
    save_file({"embeddings": np.ascontiguousarray(embeddings, dtype=np.float32)}, folder / FILE)
    pq.write_table(pa.table({"item_id": pa.array(item_ids, pa.string())}), folder / "items.parquet")


def item_ids(folder: Path) -> list[str]:
    """Read the item ids of the rows.

    Raises:
        UserError: missing or damaged.
    """
    path = folder / "items.parquet"
    return id_column(read_parquet(path, ("item_id",)), "item_id", path).to_pylist()


def load(folder: Path, names: list[str]) -> np.ndarray:
    """Map the embeddings [n_items, dim] (float32) and check every row; the file is not held in memory.

    Args:
        folder: the artifact.
        names: item ids of the data set, for messages.

    Raises:
        UserError: damaged, of another number of items, or with rows that are not finite or zero.
    """
    path = folder / FILE
    embeddings = memory_map(path)
    if len(embeddings) != len(names):
        raise UserError(f"{path} has shape {list(embeddings.shape)}, the data set has {len(names)} items.")
    remedy = f"Make the embeddings again: {command_for('embeddings', folder)} --overwrite"
    for start in range(0, len(names), CHUNK):
        squares = np.square(embeddings[start : start + CHUNK]).sum(axis=1)
        for bad, problem in ((~np.isfinite(squares), "holds NaN or infinity"), (squares == 0, "is zero")):
            if bad.any():
                rows = start + np.flatnonzero(bad)
                more = f" (and those of {len(rows) - 1} more items near it)" if len(rows) > 1 else ""
                raise UserError(
                    f"{path}: the embedding of item {rows[0]} ({names[rows[0]]!r}) {problem}{more}. {remedy}"
                )
    return embeddings


def text_vectors(embeddings: Artifact, n_items: int) -> np.ndarray:
    """Read the text part of the embeddings [n_items, dim]: without dimensions that tell what is bought together.

    Raises:
        UserError: the table has another length than the catalogue.
    """
    vectors, space = read_embeddings(embeddings, n_items), embeddings.folder / "space.json"
    if not space.is_file():
        return vectors
    mean = np.array(json.loads(space.read_text())["mean"])  # of the texts, followed by zeros
    size = np.flatnonzero(mean).max(initial=-1) + 1
    return vectors[:, :size] if size else vectors


def read_embeddings(embeddings: Artifact, n_items: int) -> np.ndarray:
    """Read all dimensions of the embeddings [n_items, dim]."""
    vectors = load_file(embeddings.folder / FILE)["embeddings"]
    if len(vectors) != n_items:
        raise UserError(f"{embeddings.folder} holds {len(vectors)} embeddings, the catalogue {n_items} items.")
    return vectors


def memory_map(path: Path) -> np.ndarray:
    """Map the tensor `embeddings` of a safetensors file, read-only, float32 [n, dim]; rows are read when used.

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
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        remedy = f"{command_for('embeddings', path.parent)} --overwrite"
        raise UserError(f"{path} is damaged ({error!r}); {remedy}") from None
