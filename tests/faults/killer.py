"""Counts the changes that a process makes to files, by an audit hook, and kills it at one of them.

`changes_below` and `killed` raise an exception in place of a kill, at the change and at all later ones, so that nothing
later reaches the disk. `die_at` sends SIGKILL. Files that C++ and Rust libraries write (parquet, safetensors) raise no
events.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class KilledError(BaseException):
    """In place of a kill."""


class _Killer:
    """Counts changes below `root`, and calls `act` at number `at` and at every later one; `events` lists them."""

    root, at, events = None, 0, ()

    def __call__(self, event, args):
        if self.root is None or not self.is_change(event, args):
            return
        self.events.append((event, str(args[0])))
        if self.at and len(self.events) >= self.at:
            self.act(f"{event} {args[0]}")

    def act(self, change):
        raise KilledError(change)

    def is_change(self, event, args):
        if event == "open":
            path, mode, flags = args
            is_write = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & WRITING)
            return is_write and isinstance(path, str) and path.startswith(self.root)
        if event not in CHANGES:
            return False
        path = os.fspath(args[0]) if not isinstance(args[0], int) else ""
        return not os.path.isabs(path) or str(path).startswith(self.root)  # relative: of shutil.rmtree, to a descriptor


_killer = _Killer()
sys.addaudithook(_killer)  # for good, but idle without a root


@contextlib.contextmanager
def changes_below(root: Path, kill_at: int = 0):
    """List the changes to files below a folder; raise `KilledError` at change number `kill_at`, from 1."""
    _killer.root, _killer.at, _killer.events = str(root), kill_at, []
    try:
        yield _killer.events
    finally:
        _killer.root = None


def killed(root: Path, work, at: int) -> bool:
    """Do the work, killed at change number `at`; False if it ended before."""
    try:
        with changes_below(root, at):
            work()
    except KilledError:
        return True
    return False


def die_at(root: Path, at: int) -> list[tuple[str, str]]:
    """List the changes below a folder from now on, and send SIGKILL to this process just before number `at` (0: never).

    Returns:
        The list of (event, path), which grows.
    """
    _killer.act = lambda change: os.kill(os.getpid(), signal.SIGKILL)
    _killer.root, _killer.at, _killer.events = str(root), at, []
    return _killer.events
