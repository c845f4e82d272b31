"""Damage to what a command reads: every file of every artifact is cut, altered or swapped with another."""

import shutil
from pathlib import Path

from .processes import Outcome
from .snapshot import LOGS, differences, snapshot
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
                try_one(trials, name, path, other, kind)


def try_one(trials: Trials, name: str, path: Path, other: Path, kind: str) -> None:
    """Damage a file of artifact `name` and run the command.

    It ends with exit code 2, one message that names the file (of two swapped ones, either), and nothing written; or the
    result is the same, because the file is not read.
    """
    artifact, kept = trials.shop.run / name, trials.shop.root / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(artifact, kept)
    damage(path, other, kind)
    try:
        trials.start_over()
        ended = trials.run_to_end()
        difference = differences(snapshot(trials.shop.work), trials.whole[1])
    finally:
        shutil.rmtree(artifact)  # the command may have made it again
        kept.rename(artifact)
    names = {path.name, other.name} if kind == "swapped" else {path.name}
    outcome, reason = judge(trials, ended, difference, names)
    trials.results.add("damage", outcome, f"{path.relative_to(trials.shop.run)} {kind}: {reason}")


def judge(trials: Trials, ended: Outcome, difference: list[str], names: set[str]) -> tuple[str, str]:
    """Tell what a trial came to, and why; `names` are the files of which the message may name any."""
    left = [file for file in trials.shop.work.rglob("*") if file.is_file() and LOGS not in file.parts]
    errors = [line for line in ended.text.splitlines() if line.startswith("error")]
    if ended.code == 0 and not difference:
        return "unread", ""
    if ended.code == 0:
        repaired = trials.stage.repairs and all("manifest.json" in each for each in difference)
        return "repaired" if repaired else "differing", str(difference[:4])
    if ended.code != 2 or "Traceback" in ended.text or len(errors) != 1:
        return "unkind", f"exit code {ended.code}: {ended.text[-700:]}"
    if not any(name in errors[0] for name in names):
        return "unkind", f"the message does not name it: {errors[0]}"
    return ("unkind", f"left {left[0]}") if left else ("refused", "")


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
