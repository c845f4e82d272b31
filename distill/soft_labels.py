"""Soft labels as a data set: what a teacher says about each training example.

`soft_labels/` holds `data/*.parquet`, which `datasets.load_dataset("parquet", data_files="…/data/*.parquet")` reads,
`index.json` (rows and checksum of each shard, encoding, scope, whose labels they are) and `report.json` (how good they
are). One row an example, users whole inside a shard:

| column | holds |
|---|---|
| user, position | which example: the item at `position` of the user's sequence is the target |
| target, target_codes | its item number and codes [levels] |
| candidates, candidate_scores | item numbers, the reference first, then the teacher's best [keep]; their log P(v\\|S) |

and per level L the log-probabilities of its V codewords over the teacher's whole vocabulary, by encoding:

| encoding | columns |
|---|---|
| fp16 | log_probs_L [V] |
| u8 | mass_L: log Σp; roots_L: V bytes, round(208·√(p/Σp)); tail_L: log of the share that zero bytes have together |
| topk+tail | top_L: the likeliest codewords [48]; top_log_probs_L; tail_L: log of what the others share equally |

The student does not know who taught. Temperature is the student's business and is not baked in.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill import artifacts
from distill.artifacts import Artifact, UserError
from distill.catalog import PAD, Examples

INDEX, INDEX_SCHEMA = "index.json", 1
Columns = dict[str, np.ndarray]
Rows = np.ndarray | slice


class Fp16:
    """Every log-probability as a half."""

    @staticmethod
    def encode(log_probs: np.ndarray) -> Columns:
        return {"log_probs": log_probs.astype(np.float16)}

    @staticmethod
    def decode(columns: Columns, size: int) -> np.ndarray:
        return columns["log_probs"].astype(np.float32)


class U8:
    """√p in equal steps: where KL is the price, an error of √p costs the same wherever it is made.

    KL(p ‖ p + dp) ≈ ½ Σ dp²/p = 2 Σ d(√p)², so steps of 1/208 cost at most 2 · V / (12 · 208²) nats: below .001 for 256
    codewords, whatever the distribution. Most bytes are small, and zstd packs them.
    """

    STEPS = 208

    @staticmethod
    def encode(log_probs: np.ndarray) -> Columns:
        mass = np.logaddexp.reduce(log_probs, axis=1)
        shares = np.exp(log_probs - np.maximum(mass, np.finfo(np.float32).min)[:, None])
        roots = np.rint(np.sqrt(shares) * U8.STEPS).astype(np.uint8)
        with np.errstate(divide="ignore"):
            tail = np.log(np.where(roots == 0, shares, 0).sum(1))
        return {"roots": roots, "mass": mass.astype(np.float16), "tail": tail.astype(np.float16)}

    @staticmethod
    def decode(columns: Columns, size: int) -> np.ndarray:
        roots, tail = columns["roots"], np.exp(columns["tail"].astype(np.float32))
        squares = (np.arange(256, dtype=np.float32) / U8.STEPS) ** 2
        with np.errstate(divide="ignore"):
            table = np.log(squares)
            rest = np.log(tail / np.maximum((roots == 0).sum(1), 1))
            scale = np.log(np.maximum(1 - tail, 0)) - np.log(np.maximum(squares[roots].sum(1), 1e-9))
        inside = np.where(roots == 0, rest[:, None], table[roots] + scale[:, None])
        return inside + columns["mass"].astype(np.float32)[:, None]


class TopK:
    """The likeliest codewords, and the mass of the others in one number: what peers store. Biased: the tail is flat."""

    K = 48

    @staticmethod
    def encode(log_probs: np.ndarray) -> Columns:
        k = min(TopK.K, log_probs.shape[1])
        top = np.argsort(-log_probs, axis=1, kind="stable")[:, :k]
        probs = np.exp(log_probs)
        np.put_along_axis(probs, top, 0, axis=1)
        with np.errstate(divide="ignore"):
            tail = np.log(probs.sum(1)).astype(np.float16)
        kept = np.take_along_axis(log_probs, top, axis=1).astype(np.float16)
        return {"top": top.astype(np.int16), "top_log_probs": kept, "tail": tail}

    @staticmethod
    def decode(columns: Columns, size: int) -> np.ndarray:
        top = columns["top"].astype(np.int64)
        share = columns["tail"].astype(np.float32) - np.log(max(size - top.shape[1], 1), dtype=np.float32)
        log_probs = np.repeat(share[:, None], size, axis=1)
        np.put_along_axis(log_probs, top, columns["top_log_probs"].astype(np.float32), axis=1)
        return log_probs


ENCODINGS = {"fp16": Fp16, "u8": U8, "topk+tail": TopK}


def kl(log_probs: np.ndarray, encoding: str) -> float:
    """Mean KL in nats from the labels to what an encoding makes of them, both normalised over the codewords.

    Args:
        log_probs: [n, levels, V].
        encoding: a key of `ENCODINGS`.
    """
    kind, size = ENCODINGS[encoding], log_probs.shape[-1]
    exact = log_probs.reshape(-1, size).astype(np.float64)
    found = kind.decode(kind.encode(exact.astype(np.float32)), size).astype(np.float64)
    exact, found = (one - np.logaddexp.reduce(one, axis=1, keepdims=True) for one in (exact, found))
    probs = np.exp(exact)
    with np.errstate(invalid="ignore"):
        return float(np.where(probs > 0, probs * (exact - found), 0).sum(1).mean())


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
        again = f"export again with: {artifacts.MADE_BY['soft_labels']} --overwrite"
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


def parts_of(kind: type) -> list[str]:
    """Names of an encoding's columns, without the level."""
    return list(kind.encode(np.zeros((1, 1), np.float32)))


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
            f"{artifacts.MADE_BY['soft_labels']}: it makes this shard alone."
        )
    table = pq.ParquetFile(pa.BufferReader(content)).read(names)
    return {name: as_array(table[name]) for name in table.column_names}


def as_array(column: pa.ChunkedArray) -> np.ndarray:
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


def intact(folder: Path, shard: dict[str, Any]) -> bool:
    """Whether a shard is what was written, by what the index has to say of it."""
    try:
        with open(Path(folder) / "data" / shard["file"], "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"]
    except OSError:
        return False


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The index's shards; [] where there is none."""
    try:
        return json.loads((Path(folder) / INDEX).read_text())["shards"]
    except (OSError, ValueError, KeyError):
        return []


def write_index(folder: Path, shards: list[dict[str, Any]], **facts: Any) -> None:
    """Write `index.json`.

    Args:
        folder: of the artifact.
        shards: what `write_shard` said, in order.
        facts: levels, codebook_size, scope, encoding, keep, and whatever tells whose labels these are.
    """
    rows = sum(shard["rows"] for shard in shards)
    artifacts.write_json(folder / INDEX, {"schema": INDEX_SCHEMA, **facts, "rows": rows, "shards": shards})


CARD = """---
configs:
- config_name: default
  data_files: data/*.parquet
---
Soft labels of a generative recommender: candidates and codeword distributions, one row a training example.
`index.json` tells whose they are and how they are encoded.
"""


def push(folder: Path, name: str) -> None:
    """Copy a finished set to the Hugging Face hub, where `datasets.load_dataset(name)` finds it, or to a folder.

    Args:
        folder: a soft_labels artifact.
        name: USER/NAME on the hub; or a path that begins with `/`, `./`, `../` or `~`.

    Raises:
        UserError: the artifact is unfinished, the folder exists, or the hub does not take it.
    """
    LabelStore.open(folder)
    if is_local(name):
        target = Path(name).expanduser()
        if target.exists() and any(target.iterdir()):
            raise UserError(f"{target} is not empty; name another folder to push to.")
        shutil.copytree(folder, target, dirs_exist_ok=True)
        (target / "README.md").write_text(CARD)
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    hub = HfApi()
    try:
        hub.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        hub.upload_folder(repo_id=name, repo_type="dataset", folder_path=folder)
        hub.upload_file(path_or_fileobj=CARD.encode(), path_in_repo="README.md", repo_id=name, repo_type="dataset")
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(f"The hub does not take {name}: {str(error).splitlines()[0]}") from None


def load(name: str, **options: Any):
    """A pushed set as a `datasets.Dataset`, by its name on the hub or its folder; `options` go to `load_dataset`."""
    from datasets import load_dataset

    return load_dataset(str(Path(name).expanduser()) if is_local(name) else name, split="train", **options)


def is_local(name: str) -> bool:
    """Whether a name is a path rather than one of the hub."""
    return name.startswith(("/", "./", "../", "~"))


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


def _column(values: np.ndarray) -> pa.Array:
    """Rows of numbers; bytes as bytes, which parquet would otherwise store as 32-bit integers."""
    if values.ndim == 1:
        return pa.array(values)
    flat = np.ascontiguousarray(values).reshape(-1)
    if values.dtype == np.uint8:
        offsets = pa.py_buffer(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
        return pa.Array.from_buffers(pa.binary(), len(values), [None, offsets, pa.py_buffer(flat)])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])
