"""CPU threads for small batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

USERS_PER_THREAD = 8


@contextlib.contextmanager
def few_threads(users: int) -> Iterator[None]:
    """Use no more CPU threads than a small batch keeps busy: waking them costs more than they save."""
    threads = torch.get_num_threads()
    fewer = min(threads, 1 + users // USERS_PER_THREAD)
    if fewer < threads:
        torch.set_num_threads(fewer)
    try:
        yield
    finally:
        if fewer < threads:
            torch.set_num_threads(threads)
