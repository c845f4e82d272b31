"""Messages and progress bars for the person at the terminal: one logger, one kind of bar."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from typing import Any

from tqdm import tqdm

from distill.runtime.launch import is_main_process
from distill.runtime.terminal import printable

QUIET_INTERVAL = 60.0  # seconds between two lines of progress in a log that is no terminal


class _PrintableLines(logging.Formatter):
    """Messages with their control characters escaped: they hold names and texts of others."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _CurrentStderr(logging.StreamHandler):
    """Writes to the current `sys.stderr`, so that a later redirection is followed."""

    def __init__(self):
        logging.Handler.__init__(self)
        self.setFormatter(_PrintableLines("%(message)s"))

    @property
    def stream(self) -> Any:
        return sys.stderr


def _is_main_process(_: logging.LogRecord) -> bool:
    """In a launch of several processes, only the first one logs."""
    return is_main_process()


log = logging.getLogger("lohrec")
log.setLevel(logging.INFO)
log.propagate = False
log.addHandler(_CurrentStderr())
log.addFilter(_is_main_process)

# bitsandbytes, which peft imports wherever it is installed, warns of a kernel for 4-bit weights on CPUs that it can do
# without, and names a package that would download it
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))


def quiet_libraries() -> None:
    """Switch off the progress bars of Hugging Face's libraries where stderr is no terminal."""
    if sys.stderr.isatty():
        return
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):  # Transformers reads the first
        os.environ.setdefault(name, "1")
    for name in ("transformers.utils.logging", "datasets"):  # imported before: they have read the variables
        module = sys.modules.get(name)
        if module is not None:
            module.disable_progress_bar()


class progress_bar(tqdm):  # noqa: N801 - named like tqdm, whose arguments it takes
    """A tqdm bar; where stderr is no terminal, a line a minute and one at the end."""

    def __init__(self, *args: Any, **options: Any):
        self.redraws, self.last_line = sys.stderr.isatty(), time.monotonic()
        if not self.redraws:
            quiet = {"mininterval": QUIET_INTERVAL, "maxinterval": QUIET_INTERVAL, "file": io.StringIO()}
            options |= quiet | {"ascii": False}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw the bar, or log it as a line where the last line is old enough."""
        if self.redraws:
            return super().display(msg, pos)
        if time.monotonic() - self.last_line >= QUIET_INTERVAL:
            self._log_line()
        return True

    def close(self) -> None:
        """Finish the bar: leave it on the terminal, or log its last state."""
        if not self.redraws and not self.disable and (self.n or self.total == 0):
            self._log_line()
        super().close()

    def _log_line(self) -> None:
        self.last_line = time.monotonic()
        log.info(str(self))
