"""Verify folders that are read as models, whether or not they are artifacts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.runtime import checksums
from distill.runtime.artifacts import Artifact, verify
from distill.runtime.checksums import MANIFEST
from distill.runtime.errors import UserError


def verify_folder(folder: Path) -> None:
    """Compare the files of a folder with its manifest, if it has one of ours: models are also loaded without.

    The same files are compared once in a process.

    Raises:
        UserError: as `verify`; or the manifest is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file() or checksums.is_switched_off():
        return
    manifest = _read_json(path)
    if manifest is None:
        raise UserError(f"{path} is damaged: it is no JSON. Make or copy the folder again.")
    if not _is_manifest(manifest):  # of another program, or of an earlier version
        for other in path.parent.glob("*.json"):
            if _is_manifest(_read_json(other)):
                raise UserError(f"{path} and {other} are swapped. Make or copy the folder again.")
        return
    kind, files = manifest["kind"], manifest["files"]
    if not checksums.is_seal_intact(manifest):
        raise UserError(f"{path} is damaged: its checksum is not the one that was written. Make the {kind} again.")
    state = _file_states(path.parent, [MANIFEST, *files])
    if _verified.get(path.resolve()) != state:
        verify(Artifact(path.parent, kind, "", {}, {}, manifest))
        _verified[path.resolve()] = state


_verified: dict[Path, list[tuple[int, int] | None]] = {}


def _read_json(path: Path) -> Any:
    """Read a JSON file; None if that is not possible."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _is_manifest(value: Any) -> bool:
    """Tell whether JSON is a manifest of ours that has checksums."""
    return isinstance(value, dict) and {"kind", "fingerprint", "files"} <= value.keys()


def _file_states(folder: Path, names: Iterable[str]) -> list[tuple[int, int] | None]:
    """Read size and time of files; None for one that is missing."""
    states: list[tuple[int, int] | None] = []
    for name in names:
        try:
            status = (folder / name).stat()
            states.append((status.st_size, status.st_mtime_ns))
        except OSError:
            states.append(None)
    return states
