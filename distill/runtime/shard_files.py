"""Files of finished shards in a working folder, each with its checksum beside it: damaged ones are made again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import xxhash

from distill.runtime.checksums import checksum
from distill.runtime.logs import log


def write(path: Path, content: bytes | memoryview) -> None:
    """Write the file of a shard, whole or not at all; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # the checksum first: a file that is there has one
    for target, data in ((_checksum_path(path), xxhash.xxh3_64_hexdigest(content).encode()), (path, content)):
        temporary = target.with_name(f"{target.name}.tmp")
        temporary.write_bytes(data)
        temporary.replace(target)


def is_intact(path: Path) -> bool:
    """Tell whether the file of a shard is there and holds what was written."""
    try:
        return _checksum_path(path).read_text() == checksum(path)
    except (OSError, ValueError):
        return False


def discard_damaged(paths: Iterable[Path]) -> list[Path]:
    """Delete the files of shards that were cut or altered, with a line in the log for each; returns their paths."""
    damaged = [path for path in paths if path.exists() and not is_intact(path)]
    for path in damaged:
        path.unlink()
        log.info(f"{path} was cut or altered: made again")
    return damaged


def _checksum_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.xxh3")
