"""The export by its command, with a teacher that needs no network: killed, shared, damaged, refused."""

import contextlib
import errno
import fcntl
import io
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from distill import export_soft_labels as export
from distill.data.dataset import write_dataset
from distill.labels import hub
from distill.labels.labeller import Labels
from distill.labels.store import LabelStore
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.checksums import seal
from distill.runtime.config import run
from distill.runtime.errors import UserError
from distill.semantic_ids.ids import write_codes

N_ITEMS, LEVELS, SIZE, USERS = 30, 3, 8, 60


class Hash:
    """A labeller whose answers depend on the example alone; it is slow on request, and may die."""

    def __init__(self, pause=0.0, dies_after=None):
        self.pause, self.left = pause, dies_after

    def label(self, examples, request, progress):
        probs, candidates = [], []
        for user, position, target in zip(examples.users, examples.positions, examples.targets, strict=True):
            rng = np.random.default_rng([user, position])
            probs.append(0.95 * rng.dirichlet(np.ones(SIZE), LEVELS))
            others = rng.permutation([item for item in range(N_ITEMS) if item != target])
            candidates.append([target, *others][: request.keep])
            time.sleep(self.pause)
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("the engine is gone")
        progress(len(examples))
        scores = np.tile(-np.arange(request.keep, dtype=np.float32), (len(examples), 1))
        return Labels(np.array(candidates), scores, np.log(probs).astype(np.float32))

    def facts(self):
        return {"engine": "hash"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A run's inputs: 60 users; the teacher is a folder."""
    root, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    names = [f"i{number}" for number in range(N_ITEMS)]
    sequences = [rng.permutation(N_ITEMS)[: rng.integers(4, 12)] for _ in range(USERS)]
    nothing = export.Config(run=root)
    with ArtifactJob("dataset", nothing, root / "dataset").write() as folder:
        write_dataset(folder, pa.table({"item_id": names}), [f"u{number}" for number in range(USERS)], sequences)
    data = artifacts.read(root / "dataset", "dataset")
    with ArtifactJob("semantic_ids", nothing, root / "semantic_ids", [data]).write() as folder:
        write_codes(folder, names, rng.integers(0, SIZE, (N_ITEMS, LEVELS)))
        write_json(folder / "report.json", {"codebook_size": SIZE})
    codes = artifacts.read(root / "semantic_ids", "semantic_ids")
    with ArtifactJob("teacher", nothing, root / "teacher", [data, codes]).write() as folder:
        write_json(folder / "teacher.json", {})
    return root


def settings(shop, output, **changes):
    return replace(export.Config(run=shop, output=output, width=6, keep=4, shard_rows=20), **changes)


def make(config, pause=0.0, dies_after=None, begun=None):
    """The command's work with the teacher above."""

    def opener(*_):
        if begun is not None:
            begun.set()
        return Hash(pause, dies_after), 20

    export.open_labeller = opener
    export.main(config)


def quietly(config, pause, begun=None):
    """The same in a process of its own, which says when its work begins."""
    with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):
        make(config, pause, begun=begun)


@pytest.fixture(autouse=True)
def labeller():
    opener = export.open_labeller
    yield
    export.open_labeller = opener  # other files' tests request real teachers


@pytest.fixture(scope="module")
def whole(shop, tmp_path_factory):
    """An unbroken run's set."""
    opener = export.open_labeller
    output = tmp_path_factory.mktemp("whole") / "labels"
    make(settings(shop, output))
    export.open_labeller = opener
    return output


def content(folder):
    """All files but the manifest, which holds times."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "manifest.json"}


def same(folder, whole):
    assert content(folder) == content(whole)
    assert fingerprint(folder) == fingerprint(whole)
    assert {path.name for path in folder.parent.iterdir()} == {folder.name}  # no lock, no working folder


def fingerprint(folder):
    return artifacts.read(folder, "soft_labels").fingerprint


def refused(shop, output, *words):
    """The command's error, word for word."""
    error, words = io.StringIO(), ["--run", str(shop), "--output", str(output), "--shard_rows", "20", *map(str, words)]
    export.open_labeller = lambda *_: (Hash(), 20)
    with contextlib.redirect_stderr(error), pytest.raises(SystemExit) as stop:
        run(export.main, export.Config, None, ["--width", "6", "--keep", "4", *words])
    assert stop.value.code == 2, error.getvalue()
    assert "Traceback" not in error.getvalue()
    return error.getvalue()


def test_the_set(shop, whole):
    store = LabelStore.open(whole)
    block = store.load()
    lengths = np.diff(export.Dataset.load(shop / "dataset").offsets)
    assert store.rows == len(block) == (lengths - 3).sum()
    shards = store.index["shards"]
    assert len(shards) > 10 and all(10 <= shard["rows"] <= 20 for shard in shards[:-1])
    ends = np.cumsum([shard["rows"] for shard in shards])[:-1]
    assert (block.users[ends] != block.users[ends - 1]).all()  # users whole inside a shard
    about = {"split": "train", "scope": "level", "encoding": "u8", "keep": 4, "labeller": {"engine": "hash"}}
    assert about.items() <= store.index.items()
    for kind in ("teacher", "semantic_ids", "dataset"):
        assert store.index[kind] == artifacts.read(shop / kind, kind).fingerprint
    report = json.loads((whole / "report.json").read_text())
    assert report["targets"] == store.rows and report["recall@6"] == 1  # the reference scores best
    assert report["reference_in_beams"] == 1 and report["reference_rank"] == 1
    assert report["mass_off_level"] == pytest.approx(0.05, abs=1e-5)
    exact = np.stack([np.random.default_rng([u, p]).dirichlet(np.ones(SIZE), LEVELS) for u, p in zip(
        block.users, block.positions, strict=True)])  # fmt: skip
    entropy = -(exact * np.log(exact)).sum(-1)
    for level in range(LEVELS):
        assert report[f"entropy_{level + 1}"] == pytest.approx(entropy[:, level].mean(), rel=1e-4)
    assert report["kl_fp16"] < report["kl_u8"] < 1e-3
    size = sum(path.stat().st_size for path in (whole / "data").iterdir())
    assert report["bytes_per_target"] == pytest.approx(size / store.rows)


def test_killed_at_twenty_moments(shop, whole, tmp_path):
    """Whatever a kill interrupts, the next run goes on, and the set is that of an unbroken run to the byte."""
    context, rng = multiprocessing.get_context("forkserver"), random.Random(0)
    context.set_forkserver_preload(["distill.export_soft_labels"])
    config, kills, seen = settings(shop, tmp_path / "killed"), 0, []
    parts = tmp_path / "killed.partial" / "parts"
    while kills < 20:
        begun = context.Event()
        process = context.Process(target=quietly, args=(config, 0.001, begun))
        process.start()
        while process.is_alive() and not begun.wait(0.01):  # the kill before may have come too late to stop the work
            pass
        process.join(rng.uniform(0, 0.3))
        came_to_its_end = not process.is_alive()
        process.kill()
        process.join()
        if came_to_its_end:
            assert process.exitcode == 0
            same(config.output, whole)
            shutil.rmtree(config.output)
        kills += not came_to_its_end
        seen.append(len(list(parts.glob("*.json"))))
    make(config)
    same(config.output, whole)
    assert len(set(seen)) > 3, seen  # killed with little done, and with much


@pytest.mark.parametrize("moment", ["index", "parts", "manifest", "swap"])
def test_killed_while_it_finishes(shop, whole, tmp_path, monkeypatch, moment):
    """The last steps, one by one: nothing that was finished is made again."""

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    config = settings(shop, tmp_path / "labels")
    with monkeypatch.context() as patch:
        if moment == "index":
            patch.setattr("distill.labels.exporter.write_index", die)
        elif moment == "parts":
            patch.setattr("distill.labels.shard_queue.shutil.rmtree", die)
        elif moment == "manifest":
            patch.setattr(artifacts, "fingerprint", die)
        else:
            patch.setattr(artifacts.os, "replace", lambda a, b: die() if str(b).endswith("labels") else os.rename(a, b))
        with pytest.raises(Killed):
            make(config)
    assert not config.output.exists()
    make(config, dies_after=0)
    same(config.output, whole)


def test_parts_of_a_job_array(shop, whole, tmp_path):
    output = tmp_path / "labels"
    for number in (2, 0, 1):
        assert not output.exists()
        make(settings(shop, output, shard=f"{number}/3"))
    same(output, whole)


def test_two_runs_at_once_share_the_work(shop, whole, tmp_path):
    context = multiprocessing.get_context("forkserver")
    config = settings(shop, tmp_path / "labels")
    runs = [context.Process(target=quietly, args=(config, 0.002)) for _ in range(2)]
    for process in runs:
        process.start()
    for process in runs:
        process.join()
        assert process.exitcode == 0
    same(config.output, whole)


def test_a_run_at_work_is_not_overwritten(shop, tmp_path):
    context = multiprocessing.get_context("forkserver")
    config = settings(shop, tmp_path / "labels")
    process = context.Process(target=quietly, args=(config, 0.01))
    process.start()
    try:
        while not list((tmp_path / "labels.partial").glob("parts/*.json")):
            time.sleep(0.002)
        assert "Another process is writing" in refused(shop, config.output, "--overwrite", "--keep", 3)
    finally:
        process.kill()
        process.join()
    assert "keep (4 -> 3)" in refused(shop, config.output, "--keep", 3)
    make(settings(shop, config.output, keep=3, overwrite=True))
    assert LabelStore.open(config.output).candidates == 3


def test_locks_work_over_nfs(shop, whole, tmp_path, monkeypatch):
    """NFS turns flock into fcntl's lock: to exclude it wants a writable descriptor, to share a readable one."""
    real, locked = fcntl.flock, []

    def flock(file, operation):
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        needed = {fcntl.LOCK_EX: os.O_WRONLY, fcntl.LOCK_SH: os.O_RDONLY}[operation & ~fcntl.LOCK_NB]
        if mode not in (needed, os.O_RDWR):
            raise OSError(errno.EBADF, "Bad file descriptor")
        locked.append(operation)
        real(file, operation)

    config = settings(shop, tmp_path / "labels")
    with pytest.raises(RuntimeError):
        make(config, dies_after=3)  # leaves a working folder
    monkeypatch.setattr(fcntl, "flock", flock)
    make(replace(config, overwrite=True))
    assert {fcntl.LOCK_EX, fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_SH} <= set(locked)
    same(config.output, whole)


def test_finishing_waits_for_files_that_are_still_open(shop, whole, tmp_path, monkeypatch):
    """Over NFS an open file keeps its folder: removing it fails until the other process has closed it."""
    real, refusals = shutil.rmtree, [errno.ENOTEMPTY, errno.EBUSY]

    def rmtree(folder, *arguments, **options):
        if refusals and Path(folder).name == "parts.tmp" and Path(folder).exists():
            raise OSError(refusals.pop(), "an open file")
        real(folder, *arguments, **options)

    monkeypatch.setattr("distill.labels.shard_queue.shutil.rmtree", rmtree)
    make(settings(shop, tmp_path / "labels"))
    assert not refusals
    same(tmp_path / "labels", whole)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("damage", ["cut", "altered", "gone"])
def test_a_damaged_shard_is_made_again_alone(shop, whole, tmp_path, finished, damage):
    output = tmp_path / "labels"
    if finished:
        shutil.copytree(whole, output)
    else:
        with pytest.raises(RuntimeError):
            make(settings(shop, output), dies_after=4)
    data = (output if finished else tmp_path / "labels.partial") / "data"
    path = data / "00002.parquet"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + (b"" if damage == "cut" else b"?"))
    left = len(LabelStore.open(whole).index["shards"]) - 4
    if finished:
        with pytest.raises(UserError, match=r"00002\.parquet is damaged"):
            LabelStore.open(output).load()
    make(settings(shop, output), dies_after=1 if finished else 1 + left)
    same(output, whole)


def test_an_engine_that_dies(shop, whole, tmp_path, capsys):
    output = tmp_path / "labels"
    with pytest.raises(RuntimeError, match="the engine is gone"):
        make(settings(shop, output), dies_after=3)
    shards = len(LabelStore.open(whole).index["shards"])
    assert f"3 of {shards} shards are finished and kept; the same command goes on" in capsys.readouterr().err
    make(settings(shop, output), dies_after=shards - 3)
    same(output, whole)


def test_a_full_disk(shop, whole, tmp_path, monkeypatch):
    written, real = [], Path.write_bytes

    def write(path, data):
        if path.suffix == ".tmp" and len(written) >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    error = refused(shop, tmp_path / "labels")
    assert "is full (" in error and "MiB free on the disk). 4 of " in error
    monkeypatch.undo()
    make(settings(shop, tmp_path / "labels"), dies_after=len(written) and 100)
    same(tmp_path / "labels", whole)


def test_changes_are_refused_by_name(shop, whole, tmp_path):
    output = tmp_path / "labels"
    shutil.copytree(whole, output)
    assert "width (6 -> 7) changed" in refused(shop, output, "--width", 7)
    assert "encoding (u8 -> fp16) changed" in refused(shop, output, "--encoding", "fp16")
    other = tmp_path / "run"
    shutil.copytree(shop, other)
    manifest = json.loads((other / "teacher/manifest.json").read_text())
    write_json(other / "teacher/manifest.json", seal(manifest | {"fingerprint": "another"}))
    assert "input teacher changed" in refused(other, output)
    assert content(output) == content(whole)
    make(settings(other, output, overwrite=True))
    assert LabelStore.open(output).index["teacher"] == "another"


def test_choice_of_examples(shop, tmp_path):
    def users(**changes):
        make(settings(shop, tmp_path / "labels", overwrite=True, **changes))
        return LabelStore.open(tmp_path / "labels").load()

    assert set(users(users="5:9").users.tolist()) <= {5, 6, 7, 8}
    assert set(users(users="3").users.tolist()) == {0, 1, 2}
    assert len(users(limit=7)) == 7
    for split in ("valid", "test"):
        assert users(split=split).users.tolist() == list(range(USERS))


def test_a_dry_run_writes_nothing(shop, whole, tmp_path, capsys):
    make(settings(shop, tmp_path / "labels", dry_run=True))
    out = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert f"targets              {LabelStore.open(whole).rows:,} of " in out
    for word in ("bytes a target", "size", "time", "kl u8"):
        assert word in out


def test_push(shop, tmp_path):
    make(settings(shop, tmp_path / "labels", push=str(tmp_path / "pushed")))
    pushed = hub.load(str(tmp_path / "pushed"), cache_dir=str(tmp_path / "cache"))
    assert len(pushed) == LabelStore.open(tmp_path / "labels").rows


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--width", "0"], "--width is 0; expected a whole number of at least 1"),
        (["--users", "9:3"], "expected N or FROM:TO"),
        (["--users", "some"], "expected N or FROM:TO"),
        (["--users", "500:600"], "has no examples of users 500:600"),
        (["--shard", "3/3"], "expected I/N with I from 0 to N-1"),
        (["--shard", "0/2", "--overwrite"], "would delete the other processes' shards"),
        (["--encoding", "u9"], "u9"),
        (["--limt", "3"], "Did you mean 'limit'?"),
    ],
)
def test_bad_words(shop, tmp_path, words, said):
    assert said in refused(shop, tmp_path / "labels", *words)
    assert list(tmp_path.iterdir()) == []


def test_launched_processes_share_the_work_and_may_start_anew(shop, tmp_path):
    script = str(Path(export.__file__))
    words = ["--run", str(shop), "--mix", "transitions=1.0", "--shard_rows", "20", "--keep", "4"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    runs = [("alone", [], []), ("shared", [], ["--keep", "3"])]
    runs += [("shared", launcher, ["--overwrite"])] * 2  # over a set of other settings, then of the same
    for output, before, more in runs:
        done = subprocess.run(
            [sys.executable, *before, script, *words, "--output", str(tmp_path / output), *more],
            capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert content(tmp_path / "shared") == content(tmp_path / "alone")
