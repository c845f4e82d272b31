"""Messages and progress bars for the person at the terminal: one logger, one kind of bar."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from tqdm import tqdm

QUIET_INTERVAL = 60.0  # seconds between two lines of progress in a log that is no terminal


class _CurrentStderr(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is at the moment, so that redirected output is followed."""

    def __init__(self):
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(message)s"))

    @property
    def stream(self) -> Any:
        return sys.stderr


def _main_process(_: logging.LogRecord) -> bool:
    """In a launch of several processes, only the first one logs."""
    return os.environ.get("RANK", "0") == "0"


log = logging.getLogger("lohrec")
log.setLevel(logging.INFO)
log.propagate = False
log.addHandler(_CurrentStderr())
log.addFilter(_main_process)


class progress_bar(tqdm):  # noqa: N801 - named like tqdm, whose arguments it takes
    """A tqdm bar; where stderr is no terminal, a line a minute in place of redraws."""

    def __init__(self, *args: Any, **options: Any):
        self.redraws = sys.stderr.isatty()
        if not self.redraws:
            options |= {"mininterval": QUIET_INTERVAL, "maxinterval": QUIET_INTERVAL}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw the bar, or log it as a line."""
        if self.redraws:
            return super().display(msg, pos)
        if self.n or self.total == 0:  # not the empty bar at the start
            log.info(msg or str(self))
        return True
