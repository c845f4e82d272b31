"""Full disks: the working folder is a small tmpfs, or files may not grow; then there is room again."""

import subprocess
from pathlib import Path

from .snapshot import differences, snapshot
from .trials import Trials

ROOMY = "256m"
LOG_BYTES = 8192  # the limit holds for the log of the command too
SHARES = (0.02, 0.3, 0.6, 0.9, 1.05)  # of what the result takes


def try_full_disk(trials: Trials) -> None:
    """Run the command where its output does not fit, then again where it does.

    Where a tmpfs cannot be mounted (it takes root), RLIMIT_FSIZE alone limits what may be written.
    """
    size, largest = sizes(trials)
    for share in trials.choose(SHARES):
        if largest * share > LOG_BYTES:
            limit_files(trials, int(largest * share) + 1)
        mountable = on_small_disk(trials, int(size * share))
    if not mountable:
        print(f"  {trials.stage.name}: no tmpfs can be mounted here (it takes root); only the size of files is limited")


def sizes(trials: Trials) -> tuple[int, int]:
    """Measure how many bytes the result takes, in blocks of 4 KiB, and its largest file."""
    trials.start_over().run_to_end()
    files = [path.stat().st_size for path in trials.shop.work.rglob("*") if path.is_file()]
    return sum(-(-size // 4096) * 4096 for size in files), max(files)


def on_small_disk(trials: Trials, size: int) -> bool:
    """Try a disk of `size` bytes; False if it cannot be mounted."""
    work = trials.shop.work
    trials.start_over()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={max(size, 8192)}", "tmpfs", str(work)]
    if subprocess.run(mount, capture_output=True).returncode:
        return False
    try:
        trials.output.parent.mkdir(parents=True, exist_ok=True)
        check(trials, trials.run_to_end(), f"{size:,} bytes", lambda: remount(work))
    finally:
        subprocess.run(["umount", str(work)], check=True)
    return True


def remount(work: Path) -> None:
    """Make room."""
    subprocess.run(["mount", "-o", f"remount,size={ROOMY}", str(work)], check=True)


def limit_files(trials: Trials, size: int) -> None:
    """Try with files of at most `size` bytes."""
    trials.start_over()
    check(trials, trials.run_to_end(limit_bytes=size), f"files of {size:,} bytes", lambda: None)


def check(trials: Trials, ended, description: str, make_room) -> None:
    """Judge how the command ended on the full disk, and what it makes when there is room."""
    if ended.code == 0 and not differences(snapshot(trials.shop.work), trials.whole[1]):
        trials.results.add("full_disk", "fitted")
        return
    errors = [line for line in ended.text.splitlines() if line.startswith("error")]
    is_kind = ended.code == 2 and "Traceback" not in ended.text and len(errors) == 1 and "full" in errors[0]
    if not is_kind or trials.output.exists():
        half = "half-written " if trials.output.exists() else ""
        trials.results.add("full_disk", "unkind", f"{description}: {half}exit code {ended.code}: {ended.text[-700:]}")
    make_room()
    if is_kind:
        trials.compare("full_disk", description)
    else:
        trials.run_to_end()
