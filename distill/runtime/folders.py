"""Folders that are written and removed: renamed before they are deleted, and apart from what is read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from distill.runtime.errors import UserError


def hidden(folder: Path, purpose: str) -> Path:
    """Return the hidden neighbour of a folder for a purpose, such as `.dwr.lohrec-old`; whatever lies there is ours."""
    return folder.with_name(f".{folder.name}.lohrec-{purpose}")


def discard(folder: Path) -> None:
    """Delete a folder: a kill leaves all of it, or none under its name.

    It is renamed to its hidden neighbour first. `sweep` deletes what a kill leaves there.
    """
    removed = hidden(folder, "removed")
    sweep(folder)
    try:
        os.replace(folder, removed)
    except FileNotFoundError:
        return
    shutil.rmtree(removed)


def sweep(folder: Path) -> None:
    """Delete what a `discard` of this folder left when it was killed."""
    removed = hidden(folder, "removed")
    if removed.exists():
        shutil.rmtree(removed)


def check_apart(output: Path, sources: Iterable[Path | str]) -> None:
    """Refuse an output that is one of the folders that are read, contains one, or lies inside one.

    Raises:
        UserError: it would replace what it is made from.
    """
    place = Path(output).resolve()
    for source in sources:
        read = Path(source).resolve()
        if not read.exists():  # the name of a model on a hub
            continue
        is_whole = any((read / name).is_file() for name in ("manifest.json", "config.json"))  # an artifact, or a model
        if place == read or place in read.parents or (read in place.parents and is_whole):
            relation = "is" if place == read else "contains" if place in read.parents else "lies inside"
            raise UserError(
                f"The output {output} {relation} {source}, which this command reads and would destroy; name another "
                "--output."
            )
