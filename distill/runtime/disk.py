"""Full disks: one message that names the folder and the free space, whichever library met the end of the disk."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from distill.runtime.errors import UserError

# libraries in C++ and Rust (safetensors, tokenizers) raise errors of their own and put the system's into the text
TEXTS = {
    errno.ENOSPC: r"No space left on device|os error 28\b",
    errno.EDQUOT: r"Disk quota exceeded|os error 122\b",
    errno.EFBIG: r"File too large|os error 27\b",
}
AGAIN = "Make room, or name an --output on another disk; the same command then goes on or starts afresh."


@contextlib.contextmanager
def report_full_disk(folder: Path, then: str = AGAIN) -> Iterator[None]:
    """Turn an error of a full disk inside the block into one message; also a decorator.

    Args:
        folder: what is written; it need not exist.
        then: end of the message: what to do.

    Raises:
        UserError: the disk or the quota is full, or a file has become larger than allowed. It may happen in one
            process alone, which then reports it itself.
    """
    try:
        yield
    except Exception as error:
        reason = full_disk_reason(error)
        if isinstance(error, UserError) or reason is None:
            raise
        raise UserError(describe_full_disk(reason, folder, then), on_all_processes=False) from None


def full_disk_reason(error: BaseException) -> int | None:
    """Tell why an error, or one that it arose from, could not write: ENOSPC, EDQUOT, EFBIG; None: for other reasons."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        for number, pattern in TEXTS.items():
            if getattr(current, "errno", None) == number or re.search(pattern, str(current)):
                return number
        current = current.__cause__ or current.__context__
    return None


def describe_full_disk(reason: int, folder: Path, then: str = AGAIN) -> str:
    """Write the message: what is full, where, and how much is free.

    Args:
        reason: ENOSPC, EDQUOT or EFBIG.
        folder: what is written; it need not exist.
        then: what to do.
    """
    if reason == errno.EFBIG:
        return f"A file of {folder} is larger than its disk or `ulimit -f` allows: the limit is full. {then}"
    what = "disk" if reason == errno.ENOSPC else "disk quota"
    return f"The {what} of {folder} is full ({_free_mib(folder):,.1f} MiB free on the disk). {then}"


def _free_mib(folder: Path) -> float:
    """Measure the free space for this user where a folder lies, or would lie."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free / 2**20
