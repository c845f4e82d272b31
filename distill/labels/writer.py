"""Shards of soft labels as parquet files: write, read, check."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill.data.dataset import Examples
from distill.labels.encodings import ENCODINGS
from distill.labels.schema import Columns
from distill.runtime.errors import UserError


def read_shard(path: Path, sha256: str, command: str, names: Sequence[str] | None = None) -> Columns:
    """Read one shard.

    Args:
        path: of the parquet file.
        sha256: its checksum in the index.
        command: the export that makes it again, for the message of an error.
        names: the columns wanted; None: all.

    Returns:
        Arrays [rows] or [rows, length] by name of the column.

    Raises:
        UserError: the file is missing, or is not what was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        content, reason = b"", error.strerror
    else:
        reason = "its checksum differs from the index: it was cut or altered"
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"The shard {path} is damaged ({reason}). Run its export again; only damaged shards are made: {command}"
        )
    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read(names)
        table.validate(full=True)
        return {name: column_to_array(table[name]) for name in table.column_names}
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:  # a damaged shard whose checksum is right
        reason = f"The shard {path} is damaged ({str(error).splitlines()[0]})"
        raise UserError(f"{reason}. Run its export again: {command} --overwrite") from None


def column_to_array(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column to an array [rows]; lists or bytes of equal length become a matrix [rows, length].

    Raises:
        ValueError: lists or bytes of different lengths.
    """
    array = column.combine_chunks()
    if pa.types.is_binary(array.type):
        offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
        content = np.frombuffer(array.buffers()[2] or b"", np.uint8)
        return _matrix(content[offsets[0] : offsets[-1]], np.diff(offsets))
    if pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return _matrix(array.flatten().to_numpy(zero_copy_only=False), lengths)
    return array.to_numpy(zero_copy_only=False)


def _matrix(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Shape flat values to [rows, length]."""
    length = int(lengths[0]) if len(lengths) else 0
    if (lengths != length).any():
        raise ValueError("its lists differ in length")
    return values.reshape(len(lengths), length)


def shard_columns(
    examples: Examples,
    target_codes: np.ndarray,
    candidates: np.ndarray,
    candidate_scores: np.ndarray,
    log_probs: np.ndarray,
    encoding: str = "u8",
    states: np.ndarray | None = None,
) -> Columns:
    """Encode labels as the columns of a shard.

    Args:
        examples: n examples.
        target_codes: codewords of the targets [n, levels].
        candidates: item numbers [n, keep].
        candidate_scores: log P(v|S) [n, keep].
        log_probs: of the codewords [n, levels, V].
        encoding: of `log_probs`, a key of `ENCODINGS`.
        states: hidden states as bytes [n, levels, layers, features]; None: none.
    """
    columns = {
        "user": examples.users,
        "position": examples.positions,
        "target": examples.targets,
        "target_codes": target_codes.astype(np.int16),
        "candidates": candidates,
        "candidate_scores": candidate_scores.astype(np.float32),
    }
    for level in range(log_probs.shape[1]):
        for name, values in ENCODINGS[encoding].encode(log_probs[:, level].astype(np.float32)).items():
            columns[f"{name}_{level}"] = values
        if states is not None:
            columns[f"states_{level}"] = states[:, level].reshape(len(examples), math.prod(states.shape[2:]))
    return columns


def encode_columns(columns: Columns) -> memoryview:
    """Encode columns of `shard_columns` as the content of a parquet file; equal columns give equal bytes."""
    numbers = {name: columns[name].astype(np.int32) for name in ("user", "position", "target", "candidates")}
    arrays = {name: _column(values) for name, values in (columns | numbers).items()}
    content = io.BytesIO()
    # no dictionaries: zstd compresses the plain bytes better
    split = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in ("candidates", "candidate_scores")}
    pq.write_table(
        pa.table(arrays),
        content,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        column_encoding=split,
    )
    return content.getbuffer()


def concatenate_columns(parts: list[Columns], order: np.ndarray) -> Columns:
    """Join columns of several parts, and put their rows into an order."""
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}


def write_shard(path: Path, examples: Examples, *labels: Any) -> dict[str, Any]:
    """Encode and write a shard.

    Args:
        path: of the parquet file.
        examples: n examples.
        labels: the other arguments of `shard_columns`.

    Returns:
        The shard's record in the index: file, rows and sha256.
    """
    return write_content(path, encode_columns(shard_columns(examples, *labels)), len(examples))


def write_content(path: Path, content: bytes | memoryview, rows: int) -> dict[str, Any]:
    """Write an encoded shard through a temporary name.

    Args:
        path: of the parquet file.
        content: from `encode_columns`.
        rows: its examples.

    Returns:
        The shard's record in the index: file, rows and sha256.
    """
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(content)
    except OSError:
        temporary.unlink(missing_ok=True)  # the disk may be full
        raise
    temporary.replace(path)
    return {"file": path.name, "rows": rows, "sha256": hashlib.sha256(content).hexdigest()}


def is_intact(folder: Path, shard: dict[str, Any]) -> bool:
    """Tell whether a shard's file has the checksum of its record in the index."""
    try:
        with open(Path(folder) / "data" / shard["file"], "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"]
    except OSError:
        return False


def _column(values: np.ndarray) -> pa.Array:
    """Convert an array to a column; uint8 rows become bytes, for parquet stores numbers in 32 bits at least."""
    if values.ndim == 1:
        return pa.array(values)
    flat = np.ascontiguousarray(values).reshape(-1)
    if values.dtype == np.uint8:
        offsets = pa.py_buffer(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
        return pa.Array.from_buffers(pa.binary(), len(values), [None, offsets, pa.py_buffer(flat)])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])
