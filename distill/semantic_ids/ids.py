"""Semantic IDs: item number ↔ codes ↔ tokens (paper 2.2).

`semantic_ids/` holds `codes.parquet` (item_id, codes), `report.json`, and for trained quantisers
`quantiser.safetensors` and `quantiser.json`. Two items may share all codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill.runtime import artifacts
from distill.runtime.artifacts import Artifact
from distill.runtime.errors import UserError
from distill.runtime.json_files import read_object
from distill.runtime.parquet import id_column, number_matrix, read_parquet

LEVEL_NAMES = "abcdefgh"
MAX_CODEBOOK = 32767  # codewords are stored in 16 bits


@dataclass(frozen=True)
class SemanticIDs:
    """The codes of every item.

    Attributes:
        artifact: the folder they were read from.
        item_ids: of the rows [n_items].
        codes: [n_items, levels], each in [0, codebook_size).
        codebook_size: codewords per level (paper: 256).
    """

    artifact: Artifact
    item_ids: list[str]
    codes: np.ndarray
    codebook_size: int

    @staticmethod
    def load(folder: Path, n_items: int | None = None) -> SemanticIDs:
        """Read a semantic_ids artifact.

        Raises:
            UserError: missing or damaged, or not of a catalogue of `n_items` items.
        """
        artifact = artifacts.read(folder, "semantic_ids")
        artifacts.verify(artifact)
        path, report = Path(folder) / "codes.parquet", Path(folder) / "report.json"
        table = read_parquet(path, ("item_id", "codes"))
        item_ids, codes = id_column(table, "item_id", path), number_matrix(table, "codes", path)
        if n_items is not None and len(codes) != n_items:
            raise UserError(f"{folder} has codes of {len(codes)} items, the data set has {n_items}.")
        size = read_object(report, {"codebook_size": int}, "Make the IDs again with --overwrite.")["codebook_size"]
        if codes.shape[1] > len(LEVEL_NAMES) or codes.min() < 0 or not codes.max() < size <= MAX_CODEBOOK:
            raise UserError(
                f"{path} and {report.name} do not belong together: expected at most {len(LEVEL_NAMES)} codewords an "
                f"item, each from 0 to {size - 1}, found {codes.shape[1]} from {codes.min()} to {codes.max()}. Make "
                "the IDs again with --overwrite."
            )
        return SemanticIDs(artifact, item_ids.to_pylist(), codes, size)

    @property
    def levels(self) -> int:
        return self.codes.shape[1]

    def tokens(self) -> list[str]:
        """List all codeword tokens in level order: `<a_0> … <a_255> <b_0> …`."""
        return [token(level, code) for level in range(self.levels) for code in range(self.codebook_size)]

    def text(self, item: int) -> str:
        """Write an item's ID as tokens, `<a_137><b_112><c_79><d_200>`."""
        return "".join(token(level, code) for level, code in enumerate(self.codes[item]))


def token(level: int, code: int) -> str:
    """Write the token of a codeword, `<a_137>`."""
    return f"<{LEVEL_NAMES[level]}_{code}>"


def keys(codes: np.ndarray) -> np.ndarray:
    """Number the distinct rows of codes [n, levels] from 0 in sorted order; equal rows get equal numbers [n]."""
    key = np.zeros(len(codes), dtype=np.int64)
    for column in codes.T:
        key = np.unique(key * (int(codes.max()) + 1) + column, return_inverse=True)[1].ravel()
    return key


def collision_rate(codes: np.ndarray) -> float:
    """Compute `(items − distinct IDs) / items` (LC-Rec)."""
    return 1 - (int(keys(codes).max()) + 1) / len(codes)


def write_codes(folder: Path, item_ids: list[str], codes: np.ndarray) -> None:
    """Write `codes.parquet` (item_id, codes [levels])."""
    starts = pa.array(np.arange(len(codes) + 1) * codes.shape[1], pa.int32())
    column = pa.ListArray.from_arrays(starts, pa.array(codes.ravel(), pa.int16()))
    pq.write_table(pa.table({"item_id": pa.array(item_ids, pa.string()), "codes": column}), folder / "codes.parquet")
