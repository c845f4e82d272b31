"""Shards of soft labels as parquet files: encoding, writing, reading, checking."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill.data.dataset import Examples
from distill.labels.encodings import ENCODINGS
from distill.labels.schema import Columns
from distill.runtime.commands import command_for
from distill.runtime.errors import UserError


def read_shard(path: Path, sha256: str, names: Sequence[str] | None = None) -> Columns:
    """The columns of one shard, or those named, as arrays [rows] or [rows, length].

    Raises:
        UserError: it is missing, or not what was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        content, reason = b"", error.strerror
    else:
        reason = "its checksum is not the index's: it was cut or altered"
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"The shard {path} is damaged ({reason}). Run the export that made it again, "
            f"{command_for('soft_labels', path.parents[1])}: it makes this shard alone."
        )
    table = pq.ParquetFile(pa.BufferReader(content)).read(names)
    return {name: column_to_array(table[name]) for name in table.column_names}


def column_to_array(column: pa.ChunkedArray) -> np.ndarray:
    """A column as an array [rows]; of lists or bytes of equal length, as a matrix [rows, length]."""
    array = column.combine_chunks()
    if pa.types.is_binary(array.type):
        offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
        content = np.frombuffer(array.buffers()[2], np.uint8)
        return content[offsets[0] : offsets[-1]].reshape(len(array), -1)
    if pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
    return array.to_numpy(zero_copy_only=False)


def encode_shard(
    examples: Examples,
    target_codes: np.ndarray,
    candidates: np.ndarray,
    candidate_scores: np.ndarray,
    log_probs: np.ndarray,
    encoding: str = "u8",
) -> memoryview:
    """The bytes of one shard's parquet file.

    Args:
        examples: n examples.
        target_codes: [n, levels].
        candidates: item numbers [n, keep].
        candidate_scores: log P(v|S) [n, keep].
        log_probs: [n, levels, V].
        encoding: of `log_probs`, a key of `ENCODINGS`.
    """
    columns = {
        "user": pa.array(examples.users, pa.int32()),
        "position": pa.array(examples.positions, pa.int32()),
        "target": pa.array(examples.targets, pa.int32()),
        "target_codes": _column(target_codes.astype(np.int16)),
        "candidates": _column(candidates.astype(np.int32)),
        "candidate_scores": _column(candidate_scores.astype(np.float32)),
    }
    for level in range(log_probs.shape[1]):
        for name, values in ENCODINGS[encoding].encode(log_probs[:, level].astype(np.float32)).items():
            columns[f"{name}_{level}"] = _column(values)
    content = io.BytesIO()
    # no dictionaries: they would only hide from zstd how often each byte occurs
    split = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in ("candidates", "candidate_scores")}
    pq.write_table(
        pa.table(columns),
        content,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        column_encoding=split,
    )
    return content.getbuffer()


def write_shard(path: Path, *rows: Any) -> dict[str, Any]:
    """Write `encode_shard(*rows)` through a temporary name; what the index has to say of it."""
    content = encode_shard(*rows)
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(content)
    except OSError:
        temporary.unlink(missing_ok=True)  # a disk that is full needs the room
        raise
    temporary.replace(path)
    return {"file": path.name, "rows": len(rows[0]), "sha256": hashlib.sha256(content).hexdigest()}


def is_intact(folder: Path, shard: dict[str, Any]) -> bool:
    """Whether a shard is what was written, by what the index has to say of it."""
    try:
        with open(Path(folder) / "data" / shard["file"], "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"]
    except OSError:
        return False


def _column(values: np.ndarray) -> pa.Array:
    """Rows of numbers; bytes as bytes, which parquet would otherwise store as 32-bit integers."""
    if values.ndim == 1:
        return pa.array(values)
    flat = np.ascontiguousarray(values).reshape(-1)
    if values.dtype == np.uint8:
        offsets = pa.py_buffer(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
        return pa.Array.from_buffers(pa.binary(), len(values), [None, offsets, pa.py_buffer(flat)])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])
