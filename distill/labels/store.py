"""Read soft labels: shards in blocks, rows decoded on request."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.labels.encodings import decode_level, decode_states
from distill.labels.index_file import read_index
from distill.labels.labeller import LAST_LAYER
from distill.labels.schema import Columns, Rows
from distill.labels.shard_check import find_problem
from distill.labels.writer import read_shard
from distill.runtime import artifacts
from distill.runtime.artifacts import Artifact
from distill.runtime.commands import command_for
from distill.runtime.errors import UserError

ONE_CALL_FLAGS, ONE_CALL_OPTIONS = ("--overwrite",), ("--shard", "--push")  # without and with a value


@dataclass(frozen=True)
class LabelBlock:
    """Labels in memory as they are stored; rows are decoded on request.

    Attributes:
        users, positions, targets: the examples [n].
        encoding: of the log-probabilities, a key of `ENCODINGS`.
        size: V, codewords a row.
        levels: levels of a semantic ID.
        columns: the other columns as arrays of n rows.
        feature_layers: of the teacher, whose states are stored.
    """

    users: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    encoding: str
    size: int
    levels: int
    columns: Columns
    feature_layers: int = 1

    def __len__(self) -> int:
        return len(self.users)

    def candidates(self, rows: Rows = slice(None)) -> np.ndarray:
        """Return the item numbers of the candidates, the reference first, padded with -1 [m, keep]."""
        return self.columns["candidates"][rows].astype(np.int64)

    def scores(self, rows: Rows = slice(None)) -> np.ndarray:
        """Return log P(v|S) of the candidates, −∞ for padding [m, keep]."""
        return self.columns["candidate_scores"][rows]

    def log_probs(self, rows: Rows = slice(None)) -> np.ndarray:
        """Decode the log-probabilities of the codewords, float16 [m, levels, V].

        They are normalised over the teacher's whole vocabulary.
        """
        log_probs = np.empty((len(self.targets[rows]), self.levels, self.size), np.float16)
        for level in range(self.levels):
            log_probs[:, level] = decode_level(self.columns, self.encoding, level, self.size, rows)
        return log_probs

    def states(self, rows: Rows = slice(None)) -> np.ndarray:
        """Decode the directions of the teacher's hidden states, float32 [m, levels, layers, features]."""
        levels = [decode_states(self.columns[f"states_{level}"][rows]) for level in range(self.levels)]
        states = np.stack(levels, axis=1)
        features = states.shape[2] // self.feature_layers
        return states.reshape(len(states), self.levels, self.feature_layers, features)


@dataclass(frozen=True)
class LabelStore:
    """A soft_labels artifact, read shard by shard.

    Attributes:
        artifact: its folder and manifest.
        index: the content of `index.json`.
    """

    artifact: Artifact
    index: dict[str, Any]

    @staticmethod
    def open(folder: Path) -> LabelStore:
        """Read the manifest and the index, but no labels.

        Raises:
            UserError: missing, unfinished, damaged, of another schema, or without shards.
        """
        artifact = artifacts.read(folder, "soft_labels")
        index = read_index(Path(folder), f"Export again with: {export_command(artifact)} --overwrite")
        return LabelStore(artifact, index)

    @property
    def rows(self) -> int:
        return sum(shard["rows"] for shard in self.index["shards"])

    @property
    def candidates(self) -> int:
        """Candidates of an example, the reference included."""
        return self.index["keep"]

    @property
    def levels(self) -> int:
        return self.index["levels"]

    @property
    def codebook_size(self) -> int:
        return self.index["codebook_size"]

    @property
    def features(self) -> int:
        """Numbers of each stored hidden state; 0: none are stored."""
        return self.index.get("features", 0)

    @property
    def feature_layers(self) -> int:
        """Layers of the teacher whose states are stored."""
        return len(self.index.get("feature_layers", LAST_LAYER))

    @property
    def scope(self) -> str:
        """What a row of log-probabilities covers: the codewords of its "level", or of "all" levels."""
        return self.index["scope"]

    @property
    def split(self) -> str:
        """The split that is labelled: train, valid or test."""
        return self.index.get("split", "train")

    @property
    def teacher(self) -> str | None:
        """The teacher: transitions, distance, statistics or mixture; None for a language model."""
        return self.index.get("labeller", {}).get("teacher")

    def read(self, *names: str) -> Columns:
        """Read some columns of all rows.

        Raises:
            UserError: a shard is missing, cut or altered.
        """
        return self._columns(self.index["shards"], names)

    def blocks(self, buffer_rows: int = 65536, rng: np.random.Generator | None = None) -> Iterator[LabelBlock]:
        """Yield every row once, in blocks of whole shards, so that a block has all examples of its users.

        Args:
            buffer_rows: most rows of a block of several shards.
            rng: shuffles the shards; the same generator gives all processes the same blocks. None: in order.

        Raises:
            UserError: a shard is missing, cut or altered.
        """
        shards = self.index["shards"]
        order = range(len(shards)) if rng is None else rng.permutation(len(shards))
        pending: list[dict[str, Any]] = []
        rows = 0
        for number in order:
            if pending and rows + shards[number]["rows"] > buffer_rows:
                yield self._block(pending)
                pending, rows = [], 0
            pending.append(shards[number])
            rows += shards[number]["rows"]
        yield self._block(pending)

    def load(self) -> LabelBlock:
        """Read all shards as one block."""
        return self._block(self.index["shards"])

    def shard(self, number: int) -> Columns:
        """Read all columns of a shard, as they are stored.

        Raises:
            UserError: it is missing, cut or altered.
        """
        return self._columns([self.index["shards"][number]])

    def _columns(self, shards: list[dict[str, Any]], names: tuple[str, ...] | None = None) -> Columns:
        data, command = self.artifact.folder / "data", export_command(self.artifact)
        tables = []
        for shard in shards:
            tables.append(read_shard(data / shard["file"], shard["sha256"], command, names))
            problem = find_problem(tables[-1], shard["rows"], self.index, names)
            if problem:
                path = data / shard["file"]
                raise UserError(f"The shard {path} is damaged: {problem}. Run its export again: {command} --overwrite")
        return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}

    def _block(self, shards: list[dict[str, Any]]) -> LabelBlock:
        columns = self._columns(shards)
        users, positions, targets = (columns.pop(name) for name in ("user", "position", "target"))
        size = self.codebook_size * (self.levels if self.scope == "all" else 1)
        layout = self.index["encoding"], size, self.levels, columns, self.feature_layers
        return LabelBlock(users, positions, targets, *layout)


def export_command(artifact: Artifact) -> str:
    """Return the command that made a set of labels, without the options of a single call (--overwrite, --shard, ...).

    Args:
        artifact: of kind soft_labels. The command is taken from its manifest; a set that was made from Python gets the
            command that writes to the same folder.
    """
    try:
        words = shlex.split(artifact.manifest.get("command", ""))
    except ValueError:  # a quotation that does not end: no command has written that
        words = []
    if not any(word.endswith("export_soft_labels.py") for word in words):
        return command_for("soft_labels", artifact.folder)
    kept: list[str] = []
    skip = False
    for word in words:
        option, equals, _ = word.partition("=")
        if not skip and option not in ONE_CALL_FLAGS + ONE_CALL_OPTIONS:
            kept.append(word)
        skip = not skip and option in ONE_CALL_OPTIONS and not equals
    return shlex.join(kept)
