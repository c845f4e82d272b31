"""Runs commands of the project in forked processes, which need not import torch again, and kills them."""

import atexit
import importlib
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .killer import die_at

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600.0  # seconds after which a command is taken to hang
# imported before the forks; nothing is computed, so no library has started threads
PRELOADED = (
    "torch", "torch.utils.tensorboard", "transformers", "peft", "accelerate", "datasets", "sklearn.decomposition",
    "pyarrow.parquet", "student.jobs", "student.trainer", "student.memory_tuning", "student.systems", "teacher.trainer",
    "teacher.lora", "teacher.systems", "distill.semantic_ids.build", "distill.semantic_ids.embed",
    "distill.semantic_ids.report", "distill.teachers.build", "distill.labels.exporter", "distill.evaluation.evaluate",
    "distill.evaluation.audit", "distill.evaluation.report.page", "distill.data.prepare",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        code: exit code; -9 after SIGKILL.
        text: what it wrote to stdout and stderr.
        seconds: how long it ran.
        changes: of files below the counted folder, (event, path); empty if it was killed.
    """

    code: int
    text: str
    seconds: float
    changes: list[tuple[str, str]]


class Forked:
    """A command that runs in a forked process.

    Args:
        words: script, relative to the repository, and its options.
        log: file for its output.
        counted: folder below which changes to files are counted.
        kill_at: number of the change, from 1, just before which the process dies; 0: none.
        limit_bytes: no file may grow beyond this (RLIMIT_FSIZE); None: no limit.
    """

    def __init__(
        self, words: Sequence[str], log: Path, counted: Path, kill_at: int = 0, limit_bytes: int | None = None
    ):
        self.log, self.changes_file = log, log.with_suffix(".changes")
        self.changes_file.unlink(missing_ok=True)
        self.started, self.is_reaped = time.monotonic(), False
        self.pid = os.fork()
        if not self.pid:
            self._run([str(word) for word in words], counted, kill_at, limit_bytes)

    def _run(self, words: list[str], counted: Path, kill_at: int, limit_bytes: int | None) -> None:
        """Run the command as `python SCRIPT` would, and leave; never returns."""
        code = 1
        try:
            os.setsid()
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            atexit._clear()  # what the parent wants done at its end
            sys.argv = [str(ROOT / words[0]), *words[1:]]
            if limit_bytes is not None:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
            changes = die_at(counted, kill_at)
            code = _exit_code(sys.argv[0])
            self.changes_file.write_text("".join(f"{event}\t{path}\n" for event, path in changes))
        finally:
            os._exit(code)

    def wait(self, kill_after: float | None = None) -> Outcome:
        """Wait for the end; after `kill_after` seconds the process is killed.

        Raises:
            TimeoutError: it hangs.
        """
        deadline = self.started + (LIMIT if kill_after is None else kill_after)
        while not self.has_ended():
            if time.monotonic() >= deadline:
                os.kill(self.pid, signal.SIGKILL)
                _, self.status = os.waitpid(self.pid, 0)
                if kill_after is None:
                    raise TimeoutError(f"no end after {LIMIT:.0f} s: {self.log.read_text()[-2000:]}")
                break
            time.sleep(0.002)
        changes = []
        if self.changes_file.is_file():
            changes = [tuple(line.split("\t")) for line in self.changes_file.read_text().splitlines()]
        code = os.waitstatus_to_exitcode(self.status)
        return Outcome(code, self.log.read_text(errors="replace"), time.monotonic() - self.started, changes)

    def has_ended(self) -> bool:
        """Tell whether the process has ended."""
        if not self.is_reaped:
            pid, self.status = os.waitpid(self.pid, os.WNOHANG)
            self.is_reaped = pid != 0
        return self.is_reaped


def run(words: Sequence[str], log: Path, counted: Path, kill_after: float | None = None, **options) -> Outcome:
    """Run a command to its end, or kill it after some seconds."""
    return Forked(words, log, counted, **options).wait(kill_after)


def preload() -> None:
    """Import what the commands import."""
    for name in PRELOADED:
        importlib.import_module(name)


def _exit_code(script: str) -> int:
    """Run a script as the main module, with the functions that it registers for its end; returns the exit code."""
    code: int | str | None = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)
