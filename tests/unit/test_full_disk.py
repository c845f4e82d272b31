"""A full disk ends the work with one message, leaves nothing that is half-written, and loses nothing."""

import contextlib
import errno
import os
import resource
import shutil
import threading
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from student_shop import make_shop

from distill.labels import hub
from distill.runtime import artifacts, locks
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import run
from distill.runtime.disk import describe_full_disk, full_disk_reason, report_full_disk
from distill.runtime.errors import UserError
from distill.runtime.new_folder import new_folder

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass(frozen=True)
class Config:
    """Some settings."""

    epochs: int = 1
    run: str = "runs/demo"


def write(root, error=None, resume=False):
    with ArtifactJob("dataset", Config(), root / "data").write(resume) as folder:
        (folder / "a.txt").write_text("a")
        if error:
            raise error
        (folder / "b.txt").write_text("b")


def wrapped(error):
    try:
        raise RuntimeError("the writer failed") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FULL, errno.ENOSPC),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
        (wrapped(FULL), errno.ENOSPC),
        (RuntimeError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device")]), errno.ENOSPC),
        (RuntimeError("I/O error: File too large (os error 27)"), errno.EFBIG),
        (OSError(errno.EACCES, "Permission denied"), None),
        (RuntimeError("os error 2"), None),
        (RuntimeError("os error 281"), None),
    ],
)
def test_reasons(error, reason):
    assert full_disk_reason(error) == reason


@contextlib.contextmanager
def small_files(size):
    """Let no file grow beyond some bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "write_file",
    [
        lambda path: path.write_bytes(bytes(10_000)),
        lambda path: save_file({"a": np.zeros(10_000)}, path),  # in Rust
        lambda path: pq.write_table(pa.table({"a": np.random.default_rng(0).normal(size=10_000)}), path),  # in C++
    ],
)
def test_the_errors_of_libraries(tmp_path, write_file):
    message = r"A file of .*data is larger than its disk or"
    with pytest.raises(UserError, match=message), small_files(1000), report_full_disk(tmp_path / "data"):
        write_file(tmp_path / "file")


def test_the_message_names_folder_and_free_space(tmp_path):
    free = shutil.disk_usage(tmp_path).free / 2**20
    message = describe_full_disk(errno.ENOSPC, tmp_path / "not/yet/there")
    assert message.startswith(f"The disk of {tmp_path}/not/yet/there is full (")
    assert float(message.split("(")[1].split(" MiB")[0].replace(",", "")) == pytest.approx(free, rel=0.05, abs=50)
    assert "quota" in describe_full_disk(errno.EDQUOT, tmp_path) and "ulimit" in describe_full_disk(
        errno.EFBIG, tmp_path
    )


def test_other_errors_pass(tmp_path):
    with pytest.raises(ValueError, match="another"), report_full_disk(tmp_path):
        raise ValueError("another")


@pytest.mark.parametrize("resume", [False, True])
def test_an_artifact(tmp_path, resume):
    with pytest.raises(UserError, match=r"The disk of .*data is full \([\d,.]+ MiB free") as error:
        write(tmp_path, FULL, resume)
    assert not error.value.on_all_processes
    # what a later run goes on from is kept, else the room is given back (after any error: test_artifacts.py)
    assert [path.name for path in tmp_path.iterdir()] == (["data.partial"] if resume else [])
    write(tmp_path, resume=resume)
    assert artifacts.read(tmp_path / "data", "dataset") and [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_older_artifact_is_kept(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="is full"):
        write(tmp_path, FULL)
    assert (tmp_path / "data/b.txt").read_text() == "b" and [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_lock_cannot_be_written(tmp_path, monkeypatch):
    def fail():
        raise FULL

    monkeypatch.setattr(locks, "command", fail)
    with pytest.raises(UserError, match=r"The disk of .* is full"):
        write(tmp_path)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    write(tmp_path)


def test_pushed_labels_are_whole_or_not_there(tmp_path, monkeypatch):
    make_shop(tmp_path, [5, 6], shards=2)
    copied, real = [], shutil.copytree

    def copy(source, target):
        if len(copied) == 2:
            raise FULL
        copied.append(source)
        return shutil.copy2(source, target)

    folder, target = tmp_path / "soft_labels", tmp_path / "pushed"

    def copytree(source, target, *rest, **more):  # the first call; it calls itself with its options in order
        return real(source, target, *rest, **more) if rest else real(source, target, copy_function=copy, **more)

    monkeypatch.setattr(shutil, "copytree", copytree)
    with pytest.raises(UserError, match=r"The disk of .*pushed is full"):
        hub.push(folder, str(target))
    assert len(copied) == 2 and not list(tmp_path.glob("*pushed*"))
    monkeypatch.undo()
    hub.push(folder, str(target))
    names = {path.name for path in folder.rglob("*")} | {"README.md"}
    assert {path.name for path in target.rglob("*")} == names and not list(tmp_path.glob(".pushed*"))
    before = target.stat().st_mtime_ns
    hub.push(folder, str(target))  # killed after it, the same command ends well
    assert target.stat().st_mtime_ns == before
    (target / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is not empty"):
        hub.push(folder, str(target))


@pytest.mark.parametrize("name", ["index.json", "data/00001.parquet"])
def test_damaged_labels_are_not_pushed(tmp_path, name):
    make_shop(tmp_path, [5, 6], shards=2)
    path = tmp_path / "soft_labels" / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=rf"{name} (is damaged|has)|has no readable index"):
        hub.push(tmp_path / "soft_labels", str(tmp_path / "pushed"))
    assert not list(tmp_path.glob("*pushed*"))


def test_a_new_folder_is_written_by_one_process(tmp_path, monkeypatch):
    holder = locks.OutputLock(tmp_path / "new")
    holder.acquire()
    monkeypatch.setattr(locks, "_held", {})  # as if another process held it
    with pytest.raises(UserError, match="written by another process"), new_folder(tmp_path / "new"):
        pass


def test_the_lock_of_a_run_that_was_killed_at_its_end_is_removed(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/file").write_text("whole")
    (tmp_path / "new.lock").write_text('{"pid": 1}')  # nobody holds it
    with pytest.raises(UserError, match="is not empty"), new_folder(tmp_path / "new"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_command_without_an_artifact_job(capsys, monkeypatch):
    """A thread that writes, such as TensorBoard's, prints nothing of its own."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def fail():
        raise wrapped(FULL)

    def main(_):
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        fail()

    with pytest.raises(SystemExit) as end:
        run(main, Config, None, ["--run", "somewhere"])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: The disk of somewhere is full (")
