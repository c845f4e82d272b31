"""Several processes write the shards of one artifact: each shard is made once, and the last process finishes the set.

Locks are the operating system's (flock), so a process that dies leaves nothing locked. No result depends on which
process made which shard: a run may be killed, divided differently and started again any number of times.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from distill.runtime.artifacts import IDENTITY, MANIFEST, ArtifactJob, write_json
from distill.runtime.errors import UserError
from distill.runtime.locks import exclusive, flock_exclusive, lock_path, open_for_locking, same_file

Record = dict[str, Any]  # what the index says of one shard


class ShardLock(enum.Enum):
    """Result of asking for the lock of a shard."""

    ACQUIRED = "acquired"
    BUSY = "busy"  # another process holds it
    REMOVED = "removed"  # another process has finished the artifact and removed the locks


class ShardQueue:
    """Distributes the shards of a job's output over processes.

    A shard is finished when its record `parts/00000.json` exists in the working folder.

    Locks: `OUTPUT.lock`, exclusive, while a process joins or finishes; the working folder's identity file, shared, as
    long as a process works there; `parts/00000.lock`, exclusive, while a process makes that shard.

    Args:
        job: the artifact that is written.
        shard_count: how many shards it has.
        recorded: reads all shards' records from the index of a folder; [] where there is no index yet.
        is_intact: whether a shard's file in a folder is what its record says.
    """

    def __init__(
        self,
        job: ArtifactJob,
        shard_count: int,
        recorded: Callable[[Path], list[Record]],
        is_intact: Callable[[Path, Record], bool],
    ):
        self.job, self.shard_count, self.recorded, self.is_intact = job, shard_count, recorded, is_intact
        self.folder = job.partial / "parts"
        self.lock_path = lock_path(job.output)
        self.presence: IO | None = None

    def join(self, fresh: bool = False) -> bool:
        """Create the working folder, or resume the one that exists.

        Args:
            fresh: delete what exists first.

        Returns:
            False if another process has finished the artifact in the meantime.

        Raises:
            UserError: `fresh` while another process works there; or the existing folder is of another identity.
        """
        with exclusive(self.lock_path):
            if fresh:
                self._refuse_if_in_use()
                self.job.begin()
            else:
                self.job.refuse_change()
                # with overwrite, the process that joined afresh has made the working folder: if it is gone, the output
                # is the new set
                if (self.job.output / MANIFEST).is_file() and not self.job.partial.exists():
                    if not self._damaged_in(self.job.output):
                        return False
                    self._reopen_output()
                self.job.begin(resume=True)
            self.presence = open_for_locking(self.job.partial / IDENTITY)  # held until the process ends
            fcntl.flock(self.presence, fcntl.LOCK_SH)
            if not self.folder.is_dir():
                self._create_record_folder()
        return True

    def discard_damaged(self) -> list[int]:
        """Delete the records of finished shards whose files were cut or altered; returns the shards' numbers."""
        discarded = []
        for number in range(self.shard_count):
            if self._is_damaged(self.record(number)):
                with self.lock_shard(number, wait=True) as (lock, record):
                    if lock is ShardLock.ACQUIRED and self._is_damaged(record):
                        self._record_path(number).unlink()
                        discarded.append(number)
        return discarded

    def record(self, number: int) -> Record | None:
        """Read a shard's record; None while it is unfinished."""
        try:
            return json.loads(self._record_path(number).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def count_finished(self) -> int:
        """Count the finished shards."""
        return sum(self.record(number) is not None for number in range(self.shard_count))

    def make_shards(self, numbers: Sequence[int], make: Callable[[int], Record]) -> bool:
        """Make the unfinished shards: first those that no process works on, then those of processes that died.

        Args:
            numbers: the shards to make.
            make: writes a shard and returns its record.

        Returns:
            False if another process has finished the artifact in the meantime.
        """
        for wait in (False, True):
            for number in numbers:
                if self.record(number) is None and not self.make_shard(number, make, wait):
                    return False
        return True

    def make_shard(self, number: int, make: Callable[[int], Record], wait: bool = True) -> bool:
        """Make one shard, unless another process has made it or, without `wait`, is making it.

        Args:
            number: the shard.
            make: writes the shard and returns its record.
            wait: wait for a process that works on the shard.

        Returns:
            False if another process has finished the artifact in the meantime.
        """
        with self.lock_shard(number, wait) as (lock, record):
            if lock is ShardLock.ACQUIRED and record is None:
                write_json(self._record_path(number), make(number))
        return lock is not ShardLock.REMOVED

    @contextlib.contextmanager
    def lock_shard(self, number: int, wait: bool) -> Iterator[tuple[ShardLock, Record | None]]:
        """Hold the lock of a shard inside the block, if it can be had; yields the lock's state and the shard's record.

        Args:
            number: the shard.
            wait: wait for the lock instead of reporting BUSY.
        """
        path = self.folder / f"{number:05d}.lock"
        try:
            file = open(path, "w")  # noqa: SIM115
        except FileNotFoundError:
            yield ShardLock.REMOVED, None
            return
        with file:
            acquired, record = flock_exclusive(file, wait), self.record(number)
            # checked after reading the record: "no record" means "unfinished" only if the folder was still there
            if acquired and not same_file(path, file):
                yield ShardLock.REMOVED, record
            else:
                yield ShardLock.ACQUIRED if acquired else ShardLock.BUSY, record

    def finish(self, write: Callable[[list[Record]], None]) -> bool:
        """Turn the working folder into the artifact if all shards are finished.

        Args:
            write: gets all records and writes the index and whatever else belongs to the artifact.

        Returns:
            False if shards of other processes are unfinished.
        """
        with exclusive(self.lock_path):
            if not self.folder.is_dir():
                return True  # another process was faster
            read = [self.record(number) for number in range(self.shard_count)]
            records = [record for record in read if record is not None]
            if len(records) < self.shard_count:
                return False
            write(records)
            removed = self.folder.with_suffix(".tmp")
            shutil.rmtree(removed, ignore_errors=True)
            os.replace(self.folder, removed)  # in one step: no process sees only some of the records
            remove_folder(removed)  # a run that is killed from here on reads the records from the index
            for path in self.job.partial.rglob("*.tmp"):
                path.unlink()
            if self.presence:
                self.presence.close()  # over NFS an open file would leave a trace in the artifact
            self.job.finish()
        return True

    def _record_path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.json"

    def _is_damaged(self, record: Record | None) -> bool:
        return record is not None and not self.is_intact(self.job.partial, record)

    def _damaged_in(self, folder: Path) -> bool:
        """Tell whether a finished artifact has a shard that was cut or altered."""
        return any(not self.is_intact(folder, record) for record in self.recorded(folder))

    def _refuse_if_in_use(self) -> None:
        """Raise a UserError if a process works in the working folder.

        While `lock_path` is locked no other process can join, so the result remains true.
        """
        identity = self.job.partial / IDENTITY
        if not identity.is_file():
            return
        with open_for_locking(identity) as file:
            if not flock_exclusive(file, wait=False):
                raise UserError(f"Another process is writing {self.job.output}; stop it before you --overwrite.")

    def _reopen_output(self) -> None:
        """Make the finished artifact a working folder again, so that its damaged shards can be replaced."""
        self.job.sign(self.job.output)
        os.replace(self.job.output, self.job.partial)

    def _create_record_folder(self) -> None:
        """Create `parts/` with the records that the index holds: a run may have been killed while it finished."""
        temporary = self.folder.with_suffix(".tmp")
        temporary.mkdir(exist_ok=True)
        for number, record in enumerate(self.recorded(self.job.partial)):
            write_json(temporary / f"{number:05d}.json", record)
        os.replace(temporary, self.folder)


def remove_folder(folder: Path, attempts: int = 50) -> None:
    """Delete a folder; over NFS a file that another process is about to close keeps it alive for a moment."""
    while folder.exists():
        attempts -= 1
        try:
            shutil.rmtree(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY, errno.ENOENT) or not attempts:
                raise
            time.sleep(0.1)
