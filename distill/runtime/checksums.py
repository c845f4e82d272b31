"""Fingerprint of a folder, and checksums of its files: damage is found before the content is used, by one message."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

MANIFEST = "manifest.json"
IDENTITY = "identity.json"  # in a working folder: the identity of the job that fills it
SWITCH = "LOHREC_NO_VERIFY"  # environment variable: any value but 0 leaves the check out
SEAL = "checksum"  # key of a JSON file's own checksum
SOURCES = ("distill", "teacher", "student")
MODEL_FILES = (".json", ".safetensors", ".bin", ".model", ".txt")  # config, weights, tokenizer
WHOLE_BYTES, SAMPLE_STEP, SAMPLE_BYTES = 256 << 20, 4 << 20, 64 << 10  # of `sampled_checksum`
FileRecord = tuple[int, str]  # bytes, xxh3_64


def fingerprint(folder: Path) -> str:
    """Hash the names and bytes of all files below `folder` but the manifest; times do not count."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in (MANIFEST, IDENTITY):
            continue
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def code_fingerprint() -> str:
    """Hash the names and bytes of this project's Python files."""
    digest, root = hashlib.sha256(), Path(__file__).parents[2]
    for package in SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def checksums(folder: Path, leave_out: tuple[str, ...] = ()) -> dict[str, FileRecord]:
    """Compute size and xxh3_64 of all files below a folder but the manifest, by name relative to it.

    Args:
        folder: where they are.
        leave_out: names, or beginnings of names, that are not recorded.
    """
    records = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in (MANIFEST, IDENTITY) and not name.startswith(leave_out):
            records[name] = path.stat().st_size, checksum(path)
    return records


def checksum(path: Path) -> str:
    """Compute the xxh3_64 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()


def model_identity(folder: Path) -> dict[str, FileRecord]:
    """Identify a model that is no artifact by its files: size and `sampled_checksum`, by name relative to the folder.

    Counted are config, weights and tokenizer, in sub-folders too (sentence-transformers). Hidden files, such as those
    that a download leaves, and this project's manifests are not: they hold times.
    """
    records = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix in MODEL_FILES and path.name not in (MANIFEST, IDENTITY) and not is_hidden and path.is_file():
            records[name.as_posix()] = path.stat().st_size, sampled_checksum(path)
    return records


def sampled_checksum(path: Path) -> str:
    """Compute the xxh3_64 of a file or, above 256 MiB, of samples: 64 KiB of every 4 MiB, and the last 64 KiB.

    Of the 13 GB of a 7B model 200 MB are read, for every start of a command computes it. All tensors of 4 MiB and more
    are sampled: weights tuned again are noticed, if only of a layer or by merged adapters. Missed are changes between
    the samples: of a few rows of a table alone, or of norms and biases alone.
    """
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return checksum(path)
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        for start in [*range(0, size - SAMPLE_BYTES, SAMPLE_STEP), size - SAMPLE_BYTES]:
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Add the checksum of all values, for a JSON file that holds the checksums of others."""
    return {**values, SEAL: _checksum_of_values(values)}


def is_seal_intact(values: Mapping[str, Any]) -> bool:
    """Tell whether values read from JSON are those that `seal` got; True where they have no seal (earlier versions)."""
    return SEAL not in values or values[SEAL] == _checksum_of_values(values)


def _checksum_of_values(values: Mapping[str, Any]) -> str:
    text = json.dumps({name: value for name, value in values.items() if name != SEAL}, sort_keys=True)
    return xxhash.xxh3_64_hexdigest(text.encode())


def find_damage(folder: Path, records: Mapping[str, FileRecord]) -> str | None:
    """Describe the first file that is not what was recorded; None if all are.

    Args:
        folder: where the files are.
        records: what `checksums` returned, perhaps read from JSON.
    """
    for name, (size, expected) in records.items():
        path = folder / name
        try:
            actual = path.stat().st_size
            if actual != size:
                return f"{path} is damaged: it has {actual:,} bytes, {size:,} were written"
            if checksum(path) != expected:
                return f"{path} is damaged: its checksum is not the one that was written"
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
    return None


def is_switched_off() -> bool:
    """Tell whether the check was left out by --no_verify or by the environment."""
    return os.environ.get(SWITCH, "0") not in ("", "0")
