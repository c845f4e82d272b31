"""The files of embedding shards, which remain while a model embeds the items and are joined at the end."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from distill.runtime import shard_files


def shard_path(folder: Path, number: int) -> Path:
    """Name the file of a shard."""
    return folder / f"{number:06d}.npy"


def write_shard(folder: Path, number: int, vectors: np.ndarray) -> None:
    """Write the vectors of a shard [texts, dim], whole or not at all."""
    content = io.BytesIO()
    np.save(content, vectors)
    shard_files.write(shard_path(folder, number), content.getbuffer())


def discard_damaged(folder: Path, numbers: range) -> None:
    """Delete the files of those of these shards that were cut or altered: they are made again."""
    shard_files.discard_damaged(shard_path(folder, number) for number in numbers)
