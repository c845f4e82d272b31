"""Peak memory, and one message where memory runs out."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from collections.abc import Iterator

import torch

from distill.runtime.errors import UserError


def memory_gib() -> float:
    """Return the peak memory in GiB: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@contextlib.contextmanager
def out_of_memory(advice: str) -> Iterator[None]:
    """Turn a failed allocation into one message; also a decorator.

    Args:
        advice: which options to change, "lower --batch_size".

    Raises:
        UserError: no memory was left. It may happen in one process alone, which then reports it itself.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not re.search(r"out of memory|not enough memory|can't allocate memory|alloc_cpu", str(error)):
            raise
        reason = (str(error).splitlines() or ["no memory left"])[0]
        raise UserError(f"Out of memory ({reason}); {advice}.", on_all_processes=False) from None
