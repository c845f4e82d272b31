"""Prepare batches on a thread beside the training."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any


class Prefetcher:
    """Iterate over batches that a background thread prepares.

    Args:
        batches: an iterator that draws from no global random generator.
        depth: batches that may be ready ahead of the training.

    Attributes:
        waited: seconds that the training waited for batches.
    """

    def __init__(self, batches: Iterator[Any], depth: int = 4):
        self.waited = 0.0
        self._ready: queue.Queue = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(batches,), daemon=True)
        self._thread.start()

    def _fill(self, batches: Iterator[Any]) -> None:
        last: tuple[str, Any] = ("end", None)
        try:
            for batch in batches:
                if not self._put(("batch", batch)):
                    return
        except BaseException as error:  # raised again in the training's thread
            last = ("error", error)
        self._put(last)

    def _put(self, message: tuple[str, Any]) -> bool:
        """Queue a message; False if the training has stopped."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(message, timeout=0.1)
                return True
        return False

    def __iter__(self) -> Iterator[Any]:
        while True:
            started = time.perf_counter()
            kind, value = self._ready.get()
            self.waited += time.perf_counter() - started
            if kind == "batch":
                yield value
            elif kind == "error":
                raise value
            else:
                return

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
