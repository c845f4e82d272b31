"""Files of a table of counts: `memory.safetensors`, or one for each of its shards, which are mapped when read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from safetensors.numpy import save_file
from safetensors.torch import load_file

from distill.runtime.errors import UserError

NAME = "memory"


def write_shards(shards: Iterable[sp.csr_array], count: int, folder: Path) -> None:
    """Write shards of rows one after the other, so that one of them need be in memory.

    Args:
        shards: `count` of them.
        count: their number; a single one is `memory.safetensors`, several are `memory-00001-of-00003.safetensors` etc.
        folder: an existing folder.
    """
    for number, shard in enumerate(shards, start=1):
        arrays = {"values": shard.data, "items": shard.indices, "offsets": shard.indptr}
        save_file(arrays, folder / _file_name(number, count))


def map_shards(folder: Path) -> list[sp.csr_array]:
    """Map what `write_shards` wrote: a count is read from its file when it is looked at.

    Raises:
        UserError: a file is missing or damaged.
    """
    numbered = re.compile(NAME + r"-\d{5}-of-(\d{5})\.safetensors")
    totals = {int(match[1]) for path in folder.glob(f"{NAME}-*") if (match := numbered.fullmatch(path.name))}
    count = max(totals, default=1)
    paths = [folder / _file_name(number, count) for number in range(1, count + 1)]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing.")
    files = [load_file(path) for path in paths]
    n_items = sum(len(arrays["offsets"]) - 1 for arrays in files)
    shards = []
    for path, arrays in zip(paths, files, strict=True):
        values, items, offsets = (arrays[name].numpy() for name in ("values", "items", "offsets"))
        shard = sp.csr_array((values, items, offsets), shape=(len(offsets) - 1, n_items))
        shard.check_format(full_check=True)  # numbers out of range would be read beyond the arrays
        if not np.isfinite(shard.data).all():
            raise UserError(f"{path} is damaged: a count is NaN or infinite.")
        shards.append(shard)
    return shards


def _file_name(number: int, count: int) -> str:
    return f"{NAME}.safetensors" if count == 1 else f"{NAME}-{number:05}-of-{count:05}.safetensors"
