"""Soft labels as a data set: what a teacher says about each training example.

`soft_labels/` holds `data/*.parquet`, which `datasets.load_dataset("parquet", data_files="…/data/*.parquet")` reads,
one row an example:

| column | holds |
|---|---|
| user, position | which example: the item at `position` of the user's sequence is the target |
| target, target_codes | its item number and codes [levels] |
| candidates, candidate_scores | item numbers, the reference first, then the teacher's best [k]; their log P(v\\|S) |
| log_probs_0 … | per level, its codewords' log-probabilities over the teacher's whole vocabulary [codebook_size] |

The student does not know who taught. Temperature is the student's business and is not baked in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill import artifacts
from distill.artifacts import Artifact, UserError
from distill.catalog import PAD, Examples, read_parquet


@dataclass(frozen=True)
class SoftLabels:
    """All labels in memory, row by row.

    Attributes:
        artifact: where they came from.
        users, positions, targets: the example [n].
        candidates: item numbers, the reference first, padded with -1 [n, k].
        log_probs: float16 [n, levels, codebook_size].
    """

    artifact: Artifact
    users: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    candidates: np.ndarray
    log_probs: np.ndarray

    @staticmethod
    def load(folder: Path) -> SoftLabels:
        """Read a soft_labels artifact.

        Raises:
            UserError: missing, unfinished or damaged.
        """
        artifact = artifacts.read(folder, "soft_labels")
        paths = sorted((Path(folder) / "data").glob("*.parquet"))
        tables = [read_parquet(path, ("user", "position", "target", "candidates")) for path in paths]
        if not tables:
            raise UserError(f"{folder}/data holds no parquet shards; export again with --overwrite.")
        table = pa.concat_tables(tables)
        levels = sum(name.startswith("log_probs_") for name in table.column_names)
        stacked = [matrix(table[f"log_probs_{level}"]) for level in range(levels)]
        return SoftLabels(
            artifact,
            table["user"].to_numpy(),
            table["position"].to_numpy(),
            table["target"].to_numpy(),
            matrix(table["candidates"]).astype(np.int64),
            np.stack(stacked, axis=1),
        )

    def rows_of(self, examples: Examples) -> np.ndarray:
        """Row of each example's label, -1 where there is none [n].

        Raises:
            UserError: a label's target is not the example's.
        """
        width = int(max(self.positions.max(), examples.positions.max())) + 1
        keys = self.users.astype(np.int64) * width + self.positions
        order = np.argsort(keys)
        wanted = examples.users.astype(np.int64) * width + examples.positions
        place = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
        rows = np.where(keys[order][place] == wanted, order[place], -1)
        wrong = (rows >= 0) & (self.targets[rows] != examples.targets)
        if wrong.any():
            raise UserError(f"{self.artifact.folder} labels other targets than the data set's: another data set.")
        return rows


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists of equal length as a matrix [rows, length]."""
    array = column.combine_chunks()
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)


def write_shard(
    path: Path,
    examples: Examples,
    target_codes: np.ndarray,
    candidates: np.ndarray,
    candidate_scores: np.ndarray,
    log_probs: np.ndarray,
) -> None:
    """Write one shard through a temporary name.

    Args:
        path: the parquet file.
        examples: n examples.
        target_codes: [n, levels].
        candidates: item numbers [n, k].
        candidate_scores: log P(v|S) [n, k].
        log_probs: [n, levels, codebook_size].
    """
    columns = {
        "user": pa.array(examples.users, pa.int32()),
        "position": pa.array(examples.positions, pa.int32()),
        "target": pa.array(examples.targets, pa.int32()),
        "target_codes": _lists(target_codes.astype(np.int16)),
        "candidates": _lists(candidates.astype(np.int32)),
        "candidate_scores": _lists(candidate_scores.astype(np.float32)),
    }
    for level in range(log_probs.shape[1]):
        columns[f"log_probs_{level}"] = _lists(log_probs[:, level].astype(np.float16))
    temporary = path.with_suffix(".tmp")
    pq.write_table(pa.table(columns), temporary)
    temporary.replace(path)


def correct(
    beams: np.ndarray, scores: np.ndarray, targets: np.ndarray, target_scores: np.ndarray, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """Equation (15)'s Correct: the reference first, then the beams in order without it and without invalid ones.

    Args:
        beams: item numbers, -1 for none [n, width].
        scores: theirs [n, width].
        targets: the references [n].
        target_scores: theirs [n].
        keep: candidates kept.

    Returns:
        Candidates, padded with -1, and their scores, both [n, keep].
    """
    scores = np.where((beams == targets[:, None]) | (beams == PAD), -np.inf, scores)
    gone = ~np.isfinite(scores)
    order = np.argsort(gone, axis=1, kind="stable")
    rest = np.take_along_axis(np.where(gone, PAD, beams), order, axis=1)
    candidates = np.concatenate([targets[:, None], rest], axis=1)[:, :keep]
    scores = np.concatenate([target_scores[:, None], np.take_along_axis(scores, order, axis=1)], axis=1)[:, :keep]
    missing = max(keep - candidates.shape[1], 0)
    candidates = np.pad(candidates, ((0, 0), (0, missing)), constant_values=PAD)
    return candidates, np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)


def _lists(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
