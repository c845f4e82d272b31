"""Folders that are no artifacts, written whole or not at all: exported data sets, pushed labels."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from distill.runtime.disk import full_disk_reason, report_full_disk
from distill.runtime.errors import UserError
from distill.runtime.folders import discard, hidden
from distill.runtime.locks import OutputLock


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a working folder that becomes `output` if the block ends without an exception.

    A kill leaves `output` as it was; the next start deletes the working folder.

    Raises:
        UserError: `output` is not empty or cannot be written, another process writes it, or the disk is full.
    """
    check_free(output)
    place = output.resolve()
    partial, lock = hidden(place, "new"), OutputLock(place)
    lock.acquire()
    try:
        with report_full_disk(output):
            try:
                discard(partial)
                partial.mkdir(parents=True)
                yield partial
                os.replace(partial, place)
            except OSError as error:
                if full_disk_reason(error) is not None:
                    raise
                raise UserError(f"Cannot write {output}: {error.strerror or error}.") from None
    finally:
        discard(partial)
        lock.release()


def check_free(output: Path) -> None:
    """Refuse an output folder that holds something.

    Raises:
        UserError: it exists and is not an empty folder.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        remove_leftovers(output)
        raise UserError(f"{output} exists and is not empty; name another folder or remove it yourself.")


def remove_leftovers(output: Path) -> None:
    """Remove the lock of a run that was killed after the folder was in place, unless another process holds it."""
    lock = OutputLock(output.resolve())
    if lock.path.exists():
        with contextlib.suppress(UserError):
            lock.acquire()
            lock.release()
