"""Several processes on one artifact: each makes parts that nobody else makes; whoever sees the last one done finishes.

Locks are the operating system's (flock): a process that dies, however it dies, leaves nothing locked. Nothing depends
on who made which part, so a run may be killed, split otherwise, and started again as often as one likes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from distill.runtime.artifacts import IDENTITY, MANIFEST, ArtifactJob, write_json
from distill.runtime.errors import UserError


class ShardQueue:
    """Who makes which part of a stage's output.

    A part is finished when `parts/00000.json` stands in the working folder: what `make` had to say of it.

    Args:
        stage: whose output it is.
        parts: how many there are.
        recorded: what a folder that is finished, or nearly, records of all parts; [] where it is not so far.
        is_intact: whether a part of a folder is still what was written, by what was said of it.
    """

    def __init__(
        self,
        stage: ArtifactJob,
        parts: int,
        recorded: Callable[[Path], list[dict]],
        is_intact: Callable[[Path, dict], bool],
    ):
        self.stage, self.parts, self.recorded, self.is_intact = stage, parts, recorded, is_intact
        self.folder = stage.partial / "parts"
        self.lock = stage.output.with_name(stage.output.name + ".lock")
        self.presence: IO | None = None

    def join(self, fresh: bool = False) -> bool:
        """Make the working folder, or go on in it; False: another process has finished the artifact meanwhile.

        Args:
            fresh: throw away what stands there.

        Raises:
            UserError: `fresh`, and another process works there; or what stands there is of another identity.
        """
        stage, mark = self.stage, self.stage.partial / IDENTITY
        with locked(self.lock):
            if fresh and mark.is_file():
                with open(mark) as file:
                    if not take(file, wait=False):
                        raise UserError(f"Another process is writing {stage.output}; stop it before you --overwrite.")
                    stage.begin()
            elif fresh:
                stage.begin()
            else:
                stage.refuse_change()
                if (stage.output / MANIFEST).is_file() and not stage.partial.exists():
                    if not self.broken(stage.output):
                        return False
                    stage.sign(stage.output)
                    os.replace(stage.output, stage.partial)
                stage.begin(resume=True)
            self.presence = open(mark)  # noqa: SIM115 - held until the process ends
            fcntl.flock(self.presence, fcntl.LOCK_SH)
            if not self.folder.is_dir():
                made = self.folder.with_suffix(".tmp")
                made.mkdir(exist_ok=True)
                for number, said in enumerate(self.recorded(stage.partial)):
                    write_json(made / f"{number:05d}.json", said)
                os.replace(made, self.folder)
        return True

    def broken(self, folder: Path) -> list[int]:
        """Parts of a finished artifact that are no longer what was written."""
        recorded = self.recorded(folder)
        return [number for number, said in enumerate(recorded) if not self.is_intact(folder, said)]

    def damaged(self) -> list[int]:
        """Forget finished parts that are no longer what was written; returns their numbers."""
        found = []
        for number in range(self.parts):
            said = self.said(number)
            if said is not None and not self.is_intact(self.stage.partial, said):
                with self.claim(number, wait=True) as (state, said):
                    if state == "ours" and said is not None and not self.is_intact(self.stage.partial, said):
                        (self.folder / f"{number:05d}.json").unlink()
                        found.append(number)
        return found

    def said(self, number: int) -> dict | None:
        """What was said of a part; None: it is not finished."""
        try:
            return json.loads((self.folder / f"{number:05d}.json").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def work(self, numbers: Sequence[int], make: Callable[[int], dict[str, Any]]) -> bool:
        """Make the parts that nobody has made; False: another process has finished everything meanwhile.

        First those that nobody works on; then wait for the others', in case their makers die.
        """
        for wait in (False, True):
            for number in numbers:
                if self.said(number) is not None:
                    continue
                with self.claim(number, wait) as (state, said):
                    if state == "gone":
                        return False
                    if state == "ours" and said is None:
                        write_json(self.folder / f"{number:05d}.json", make(number))
        return True

    @contextlib.contextmanager
    def claim(self, number: int, wait: bool) -> Iterator[tuple[str, dict | None]]:
        """While the block runs a part is "ours" or "taken", or the folder is "gone"; with what is said of the part."""
        path = self.folder / f"{number:05d}.lock"
        try:
            file = open(path, "w")  # noqa: SIM115
        except FileNotFoundError:
            yield "gone", None
            return
        with file:
            mine, said = take(file, wait), self.said(number)
            # looked at last: that nothing was said is true only if the folder was still there
            yield ("taken" if not mine else "ours" if same_file(path, file) else "gone"), said

    def finish(self, write: Callable[[list[dict]], None]) -> bool:
        """If all parts are there, make the working folder the artifact; False: parts of other processes are missing.

        Args:
            write: gets what was said of all parts and records it, with what else belongs to the artifact.
        """
        with locked(self.lock):
            if not self.folder.is_dir():
                return True  # somebody was quicker
            said = [self.said(number) for number in range(self.parts)]
            if any(one is None for one in said):
                return False
            write([one for one in said if one is not None])
            aside = self.folder.with_suffix(".tmp")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(self.folder, aside)  # in one step: nobody may see some parts without the others
            shutil.rmtree(aside)  # from here on a killed run finds the parts where `recorded` looks
            for path in self.stage.partial.rglob("*.tmp"):
                path.unlink()
            self.stage.finish()
        return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else is in such a block for the same path meanwhile. The file goes away with the last one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(path, "w")  # noqa: SIM115
            fcntl.flock(file, fcntl.LOCK_EX)
            if same_file(path, file):
                break
            file.close()  # its owner took it away while we waited
    except OSError as error:
        raise UserError(f"Cannot write to {path.parent}: {error.strerror}.") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def take(file: IO, wait: bool) -> bool:
    """Lock an open file for this process alone; False: somebody else holds it and we do not wait."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def same_file(path: Path, file: IO) -> bool:
    """Whether the open file is the one that now has this name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
