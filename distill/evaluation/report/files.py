"""Reading JSON files of artifacts; the message of a damaged file names the command that makes it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distill.runtime import artifacts
from distill.runtime.errors import UserError


def read_json(path: Path, kind: str | None) -> Any:
    """Read a JSON file of an artifact.

    Args:
        path: the file, directly in the artifact's folder.
        kind: of the artifact; None if unknown.

    Raises:
        UserError: missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"Missing file {path}. {remake_hint(kind, path.parent)}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). {remake_hint(kind, path.parent)}") from None


def remake_hint(kind: str | None, folder: Path) -> str:
    """Name the command that makes an artifact again."""
    if kind is None:
        return "Make its artifact again with --overwrite."
    return f"Make it again: {artifacts.command_for(kind, folder)} --overwrite"
