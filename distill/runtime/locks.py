"""Locks between processes, and the lock of an output: one run at a time writes it.

Locks are the operating system's (flock), so a process that dies leaves nothing locked.

The `filelock` library is not used: its path locks replace flock by marker files where flock is missing, and a marker
outlives a killed process; its shared locks are SQLite databases, while a shared lock here is on a file that moves with
the working folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from distill.runtime.commands import command
from distill.runtime.disk import describe_full_disk, full_disk_reason
from distill.runtime.errors import UserError
from distill.runtime.launch import is_main_process


class OutputLock:
    """The lock of an output: held by one process from before its work until the artifact is in place.

    The file `OUTPUT.lock` says who holds it: process, host, start, command. In a launch of several processes only the
    first takes it. The lock belongs to the process: a job that follows a failed one of the same process takes it over.

    Args:
        output: the folder that is written.

    Attributes:
        is_holder: whether this process takes the lock; of launches over machines with disks of their own, `machines`
            sets it for one process a machine.
    """

    def __init__(self, output: Path):
        self.output, self.path = output, lock_path(output)
        self.is_holder = is_main_process()
        self._token = object()
        weakref.finalize(self, _release, self.path, self._token)  # a job that fails leaves no lock

    def acquire(self) -> None:
        """Take the lock, if this process does not hold it.

        Raises:
            UserError: another process holds it; the message says which and since when. Or it cannot be written.
        """
        if self.is_holder:
            held = _held.get(self.path)
            if held is None or held.process != os.getpid():
                missing = [folder for folder in self.path.parents if not folder.exists()]
                held = _Held(self._token, os.getpid(), self._open(), missing)
            _held[self.path] = held._replace(token=self._token)

    def release(self) -> None:
        """Release the lock, and remove its file and the folders that were created for it and are empty."""
        _release(self.path, self._token)

    def _open(self) -> IO:
        file = None
        try:
            while True:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = open(self.path, "a+")  # noqa: SIM115
                if not flock_exclusive(file, wait=False):
                    file.seek(0)
                    holder = _describe_holder(file.read())
                    file.close()
                    raise UserError(
                        f"{self.output} is being written by another process: {holder}. Wait until it ends, stop it, or "
                        "name another --output."
                    )
                if same_file(self.path, file):
                    break
                file.close()  # the previous holder has removed this file
            file.truncate(0)
            started = time.strftime("%Y-%m-%d %H:%M:%S")
            facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": started, "command": command()}
            file.write(json.dumps(facts) + "\n")
            file.flush()
        except OSError as error:
            if file is not None:  # locked, but the disk is full
                self.path.unlink(missing_ok=True)
            raise UserError(_describe_failure(self.path.parent, error)) from None
        return file


class _Held(NamedTuple):
    """A lock of this process; a forked process inherits the entry, and must not release it."""

    token: object
    process: int
    file: IO
    created: list[Path]


_held: dict[Path, _Held] = {}


def _release(path: Path, token: object) -> None:
    held = _held.get(path)
    if held and held.token is token and held.process == os.getpid():
        del _held[path]
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            for folder in held.created:
                folder.rmdir()
        held.file.close()


def _describe_holder(text: str) -> str:
    """Describe who holds a lock, from the content of its file."""
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}: {holder['command']}"
    except (ValueError, KeyError, TypeError):  # the holder writes it this very moment, or joins an export
        return "it has just started"


def _describe_failure(folder: Path, error: OSError) -> str:
    """Describe why a lock cannot be written into a folder."""
    reason = full_disk_reason(error)
    return f"Cannot write to {folder}: {error.strerror}." if reason is None else describe_full_disk(reason, folder)


def lock_path(output: Path) -> Path:
    """Return the lock file of an output."""
    return output.with_name(output.name + ".lock")


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time into the block; the lock file is removed at the end.

    Raises:
        UserError: the lock file cannot be created or locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(path, "a")  # noqa: SIM115
            fcntl.flock(file, fcntl.LOCK_EX)
            if same_file(path, file):
                break
            file.close()  # the previous owner removed this file while we waited for its lock
    except OSError as error:
        raise UserError(_describe_failure(path.parent, error)) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def open_for_locking(path: Path) -> IO:
    """Open an existing file for reading and writing.

    Over NFS flock becomes fcntl's lock, which needs a writable descriptor to exclude and a readable one to share.
    """
    return open(path, "r+")


def flock_exclusive(file: IO, wait: bool) -> bool:
    """Lock an open, writable file for this process alone; False if another process holds it and `wait` is False."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):  # held elsewhere: EAGAIN, over some networks EACCES
        return False
    return True


def same_file(path: Path, file: IO) -> bool:
    """Tell whether the path still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
