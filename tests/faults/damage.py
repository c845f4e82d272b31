"""Damage to what a command reads: every file of every artifact is cut, altered or swapped with another."""

from pathlib import Path

from .snapshot import differences, snapshot
from .trials import Trials

KINDS = ("cut", "flipped", "swapped")


def try_damage(trials: Trials) -> None:
    """Damage each file of each artifact that the stage reads, run the command and put the file back."""
    _ = trials.whole
    for name in trials.stage.reads:
        folder = trials.shop.run / name
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        pairs = [(path, files[(number + 1) % len(files)], kind) for number, path in enumerate(files) for kind in KINDS]
        for path, other, kind in trials.choose(pairs):
            if kind != "swapped" or other.read_bytes() != path.read_bytes():
                try_one(trials, path, other, kind)


def try_one(trials: Trials, path: Path, other: Path, kind: str) -> None:
    """Damage a file and run the command.

    It ends with exit code 2, one message that names the file (of two swapped ones, either), and nothing written; or the
    result is the same, because the file is not read.
    """
    kept = {each: each.read_bytes() for each in {path, other}}
    damage(path, other, kind)
    try:
        trials.start_over()
        ended = trials.run_to_end()
        difference = differences(snapshot(trials.shop.work), trials.whole[1])
    finally:
        for each, content in kept.items():
            each.write_bytes(content)
    description = f"{path.relative_to(trials.shop.run)} {kind}"
    left = [file for file in trials.shop.work.rglob("*") if file.is_file() and "logs" not in file.parts]
    names = {path.name, other.name} if kind == "swapped" else {path.name}
    errors = [line for line in ended.text.splitlines() if line.startswith("error")]
    if ended.code == 0:
        trials.results.add("damage", "differing" if difference else "unread", f"{description}: {difference[:4]}")
    elif ended.code != 2 or "Traceback" in ended.text or len(errors) != 1:
        trials.results.add("damage", "unkind", f"{description}: exit code {ended.code}: {ended.text[-700:]}")
    elif not any(name in errors[0] for name in names):
        trials.results.add("damage", "unkind", f"{description}: the message does not name it: {errors[0]}")
    elif left:
        trials.results.add("damage", "unkind", f"{description}: left {left[0]}")
    else:
        trials.results.add("damage", "refused")


def damage(path: Path, other: Path, kind: str) -> None:
    """Cut a file to its half, flip one bit in its middle, or swap it with another."""
    content = path.read_bytes()
    if kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
