"""Reading soft labels: shards streamed in blocks, rows decoded when they are needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.dataset import Examples
from distill.labels.encodings import ENCODINGS, parts_of
from distill.labels.schema import INDEX, INDEX_SCHEMA, Columns, Rows
from distill.labels.writer import read_shard
from distill.runtime import artifacts
from distill.runtime.artifacts import Artifact
from distill.runtime.commands import command_for
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class LabelBlock:
    """Labels in memory as they are stored; only what is asked for is decoded.

    Attributes:
        users, positions, targets: the examples [n].
        encoding: of the log-probabilities.
        size: V, codewords a row.
        columns: the other columns as arrays of n rows.
    """

    users: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    encoding: str
    size: int
    levels: int
    columns: Columns

    def __len__(self) -> int:
        return len(self.users)

    def candidates(self, rows: Rows = slice(None)) -> np.ndarray:
        """Item numbers, the reference first, padded with -1 [m, keep]."""
        return self.columns["candidates"][rows].astype(np.int64)

    def scores(self, rows: Rows = slice(None)) -> np.ndarray:
        """Their log P(v|S), −∞ for padding [m, keep]."""
        return self.columns["candidate_scores"][rows]

    def log_probs(self, rows: Rows = slice(None)) -> np.ndarray:
        """Codewords' log-probabilities over the teacher's whole vocabulary, float16 [m, levels, V]."""
        kind, found = ENCODINGS[self.encoding], None
        for level in range(self.levels):
            ending = f"_{level}"
            parts = {name: self.columns[name + ending][rows] for name in parts_of(kind)}
            decoded = kind.decode(parts, self.size)
            if found is None:
                found = np.empty((len(decoded), self.levels, self.size), np.float16)
            found[:, level] = decoded
        return found

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
        if ((rows >= 0) & (self.targets[rows] != examples.targets)).any():
            raise UserError("The soft labels are of other targets than the data set's: of another data set.")
        return rows


@dataclass(frozen=True)
class LabelStore:
    """A soft_labels artifact, read shard by shard.

    Attributes:
        artifact: where it came from.
        index: what `index.json` says.
    """

    artifact: Artifact
    index: dict[str, Any]

    @staticmethod
    def open(folder: Path) -> LabelStore:
        """Read manifest and index, no labels.

        Raises:
            UserError: missing, unfinished, of another schema, or without shards.
        """
        artifact = artifacts.read(folder, "soft_labels")
        again = f"export again with: {command_for('soft_labels', folder)} --overwrite"
        try:
            index = json.loads((Path(folder) / INDEX).read_text())
        except (OSError, ValueError):
            raise UserError(f"{folder} has no readable {INDEX}; {again}") from None
        if index.get("schema") != INDEX_SCHEMA:
            raise UserError(f"{folder}/{INDEX} is of schema {index.get('schema')}, this reads {INDEX_SCHEMA}; {again}")
        if not index["shards"]:
            raise UserError(f"{folder}/data holds no parquet shards; {again}")
        return LabelStore(artifact, index)

    @property
    def rows(self) -> int:
        return sum(shard["rows"] for shard in self.index["shards"])

    @property
    def candidates(self) -> int:
        """Candidates an example."""
        return self.index["keep"]

    @property
    def levels(self) -> int:
        return self.index["levels"]

    @property
    def codebook_size(self) -> int:
        return self.index["codebook_size"]

    @property
    def scope(self) -> str:
        """ "level" or "all": whose codewords a row of log-probabilities names."""
        return self.index["scope"]

    @property
    def split(self) -> str:
        """Whose examples are labelled: train, valid or test."""
        return self.index.get("split", "train")

    @property
    def teacher(self) -> str | None:
        """Who taught: transitions, distance, statistics or mixture; None for a language model."""
        return self.index.get("labeller", {}).get("teacher")

    def read(self, *names: str) -> Columns:
        """Some columns of all rows.

        Raises:
            UserError: a shard is missing, cut or altered.
        """
        shards = [(self.artifact.folder / "data" / shard["file"], shard["sha256"]) for shard in self.index["shards"]]
        parts = [read_shard(*shard, names) for shard in shards]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def blocks(self, buffer_rows: int = 65536, rng: np.random.Generator | None = None) -> Iterator[LabelBlock]:
        """Every row exactly once, in blocks of whole shards, so of whole users.

        Args:
            buffer_rows: rows in memory; a block is several shards up to that, at least one.
            rng: shuffles the shards; the same generator gives every process of a group the same blocks. None: in order.

        Raises:
            UserError: a shard is missing, cut or altered.
        """
        shards = self.index["shards"]
        order = range(len(shards)) if rng is None else rng.permutation(len(shards))
        waiting, total = [], 0
        for number in order:
            if waiting and total + shards[number]["rows"] > buffer_rows:
                yield self._block(waiting)
                waiting, total = [], 0
            waiting.append(shards[number])
            total += shards[number]["rows"]
        yield self._block(waiting)

    def load(self) -> LabelBlock:
        """Everything as one block."""
        return self._block(self.index["shards"])

    def _block(self, shards: list[dict]) -> LabelBlock:
        tables = [read_shard(self.artifact.folder / "data" / shard["file"], shard["sha256"]) for shard in shards]
        columns = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
        keys = [columns.pop(name) for name in ("user", "position", "target")]
        size = self.codebook_size * (self.levels if self.scope == "all" else 1)
        return LabelBlock(*keys, self.index["encoding"], size, self.levels, columns)


@dataclass(frozen=True)
class SoftLabels:
    """All labels in memory, decoded: the thin form of a `LabelStore` for small sets.

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
    block: LabelBlock

    @staticmethod
    def load(folder: Path) -> SoftLabels:
        """Read a soft_labels artifact.

        Raises:
            UserError: missing, unfinished or damaged.
        """
        store = LabelStore.open(folder)
        block = store.load()
        keys = block.users, block.positions, block.targets
        return SoftLabels(store.artifact, *keys, block.candidates(), block.log_probs(), block)

    def rows_of(self, examples: Examples) -> np.ndarray:
        """As `LabelBlock.rows_of`."""
        return self.block.rows_of(examples)
