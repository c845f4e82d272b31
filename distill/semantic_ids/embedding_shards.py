"""The files of embedding shards, which remain while a model embeds the items and are joined at the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def shard_path(folder: Path, number: int) -> Path:
    """Name the file of a shard."""
    return folder / f"{number:06d}.npy"


def write_shard(folder: Path, number: int, vectors: np.ndarray) -> None:
    """Write the vectors of a shard [texts, dim], whole or not at all."""
    path = shard_path(folder, number)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.save(file, vectors)
    temporary.replace(path)
