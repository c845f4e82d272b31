"""Serve trained students over HTTP.

    python scripts/serve.py --student runs/demo/students/dwr+memory
    python scripts/serve.py --student runs/demo/students/dwr,runs/demo/students/dwr+memory --events events.sqlite

Listens on this machine alone unless --host says otherwise. docs/serving.md has the requests. Needs the extra `serve`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from distill.runtime.config import run
from distill.runtime.errors import UserError
from student.config import GraphFormat


@dataclass(frozen=True)
class Config:
    """Serve students: python scripts/serve.py --student FOLDER [--field value ...]."""

    student: list[Path] = field(default_factory=lambda: [Path("runs/demo/students/dwr+memory")])
    """Folders of students or item models, with commas between; the first answers unless a request names another."""
    dataset: Path | None = None
    """Their data set, for titles and categories (default: the folder `dataset` of the first student's run)."""
    events: Path | None = None
    """SQLite file of new interactions, which the transition memories count; without it none are taken."""
    counted_events: NonNegativeInt | None = None
    """Number of the last event that the students' data sets hold already; needed once for each data set that is new to
    the file of events, unless that is empty."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all of this machine's."""
    port: NonNegativeInt = 8000
    """Port; 0: any free port."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Further names that requests may call the server by, with commas between, such as a proxy's shop.example."""
    api_key_file: Path | None = None
    """File with the key that callers must send (default: the environment's LOHREC_API_KEY; without both: no key)."""
    window_ms: NonNegativeFloat = 2.0
    """Milliseconds that a history waits, under load, for others to be ranked with."""
    max_batch: PositiveInt = 64
    """Histories of a batch; 1: one by one."""
    max_waiting: PositiveInt = 512
    """Histories that may wait; further requests are answered by 429."""
    timeout: PositiveFloat = 10.0
    """Seconds until a request is answered by 504."""
    max_body: PositiveInt = 1 << 20
    """Bytes of a request."""
    device: str = "cpu"
    """cpu or cuda."""
    graphs: Literal["none", GraphFormat] = "none"
    """Answer by exported graphs, on processors: onnx or onnx-int8 (ONNX Runtime; the extra `export`), aoti or aoti-bf16
    (compiled; a C++ compiler). The first start with a student exports it, about a minute."""
    graph_cache: Path | None = None
    """Folder of exported graphs (default: lohrec-distill/graphs in the user's cache)."""


def main(config: Config) -> None:
    """Load the students, listen until a signal comes, finish what is in flight."""
    if config.graphs != "none" and config.device != "cpu":
        raise UserError(f"--graphs {config.graphs} is for processors, and --device is {config.device}: leave one out.")
    key = api_key(config)
    try:
        from student.serving.server import serve  # imported late: it loads torch and the extra `serve`
    except ModuleNotFoundError as error:
        raise UserError(f"The server needs {error.name}: pip install 'lohrec-distill[serve]'.") from None
    serve(config, key)


def api_key(config: Config) -> str | None:
    """Read the API key.

    Raises:
        UserError: the file cannot be read, or the key is empty.
    """
    key = os.environ.get("LOHREC_API_KEY")
    if config.api_key_file is not None:
        try:
            key = config.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"Cannot read {config.api_key_file} ({error}).") from None
    if key is not None and not key:
        raise UserError("The API key is empty; write one into the file or unset LOHREC_API_KEY.")
    return key


if __name__ == "__main__":
    run(main, Config)
