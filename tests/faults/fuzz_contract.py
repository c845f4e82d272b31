"""What every reader owes any input: a right result or a `UserError`, soon and in little memory."""

import contextlib
import io
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from distill.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20  # an input of some kilobytes that takes longer hangs; generous, because the machine may be busy
MEMORY = 2 << 30  # bytes above what the process holds already

Files = dict[str, bytes]  # content by name, relative to the folder that a reader is given


@dataclass(frozen=True)
class Target:
    """A reader under test.

    Attributes:
        name: of the target, and of its folder in `corpus/`.
        seed: builds a valid input.
        check: reads the folder that holds an input and asserts the invariants of the result; raises `UserError` where
            the reader refuses it. It may write beside the folder.
        share: how many inputs it gets, relative to others; less than 1 for readers that take long.
    """

    name: str
    seed: Callable[[], Files]
    check: Callable[[Path], None]
    share: float = 1.0


class Outcome(NamedTuple):
    """What became of one input; `verdict` is accepted, refused or fault, `detail` the message or the traceback."""

    verdict: str
    detail: str
    seconds: float


class HangError(BaseException):
    """The reader took too long; no `except Exception` of its own can stop it."""


def judge(target: Target, files: Files) -> Outcome:
    """Give an input to a target's reader, and judge what it does."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name) / "input"
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        started = time.monotonic()
        verdict, detail = "accepted", ""
        try:
            with quiet(), deadline(SECONDS), memory_limit(MEMORY):
                target.check(folder)
        except UserError as error:
            verdict, detail = "refused", str(error)
            if not detail.strip() or detail.strip() in ("None", "''"):
                verdict, detail = "fault", "a UserError without a message"
        except HangError:
            verdict, detail = "fault", f"no answer after {SECONDS} s\n{describe()}"
        except (Exception, SystemExit):
            verdict, detail = "fault", describe()
        return Outcome(verdict, detail.replace(name, ""), time.monotonic() - started)


def describe() -> str:
    """Describe the exception that is handled: its last places in this repository, and its message."""
    kind, error, trace = sys.exc_info()
    frames = traceback.extract_tb(trace)
    ours = [frame for frame in frames if frame.filename.startswith(str(ROOT)) and ".venv" not in frame.filename]
    places = [f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno} {frame.line}" for frame in ours[-3:]]
    return "\n".join([*places, f"{kind.__name__}: {str(error)[:300]}"])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow progress bars, logs and warnings, whose like nobody reads 50,000 times."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise `HangError` in the block after a time."""

    def stop(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)  # None: a handler that is not of Python


@contextlib.contextmanager
def memory_limit(extra: int) -> Iterator[None]:
    """Let allocations fail that exceed what the process has mapped by more than `extra` bytes."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
