"""Killed at any change to a file, the same work ends with the same result; and what else must never be lost."""

import itertools
import json
import shutil
from dataclasses import dataclass

import pytest
import torch
from faults.killer import KilledError, changes_below, killed

from distill.runtime import artifacts
from distill.runtime.accelerator import accelerator
from distill.runtime.artifacts import ArtifactJob, fingerprint
from distill.runtime.checkpoints import Checkpoints, Progress


@dataclass(frozen=True)
class Config:
    """Some settings."""

    epochs: int = 1


def write(root, epochs, resume=False):
    """Make an artifact of several files, in the order of a command."""
    job = ArtifactJob("dataset", Config(epochs), root / "data")
    if job.is_finished():
        return
    with job.write(resume) as folder:
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "a.txt").write_text(f"a{epochs}")
        (folder / "sub/b.txt").write_text(f"b{epochs}")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("replaces", [False, True])
def test_an_artifact_killed_anywhere(tmp_path, resume, replaces):
    write(tmp_path / "whole", 2)
    expected = artifacts.read(tmp_path / "whole/data", "dataset")
    for number in itertools.count(1):
        root = tmp_path / f"{number}"
        if replaces:
            write(root, 1)
        if not killed(root, lambda root=root: write(root, 2, resume), number):
            break
        if replaces:  # the old artifact or the new one is on the disk, whole
            manifests = [json.loads(path.read_text()) for path in root.glob("*/manifest.json")]
            assert any(manifest["config"]["epochs"] == 1 for manifest in manifests) or (root / "data").is_dir()
        write(root, 2, resume)
        actual = artifacts.read(root / "data", "dataset")
        assert fingerprint(root / "data") == actual.fingerprint == expected.fingerprint
        assert actual.manifest["files"] == expected.manifest["files"]
        artifacts.verify(actual)
        assert [path.name for path in root.iterdir()] == ["data"], number
    assert number > 10


def test_twice_killed_where_the_old_artifact_is_replaced(tmp_path):
    """Between the two renames the artifact is absent; a later kill must not lose the old one."""
    write(tmp_path, 1)
    with changes_below(tmp_path) as events:
        write(tmp_path, 2)
    renames = [
        number for number, (event, path) in enumerate(events, 1) if event == "os.rename" and path.endswith(".partial")
    ]
    shutil.rmtree(tmp_path / "data")
    write(tmp_path, 1)
    assert killed(tmp_path, lambda: write(tmp_path, 2), renames[-1])
    assert not (tmp_path / "data").exists()
    job = ArtifactJob("dataset", Config(3), tmp_path / "data")
    with pytest.raises(KeyboardInterrupt), job.write():
        raise KeyboardInterrupt
    assert artifacts.read(tmp_path / "data", "dataset").config == {"epochs": 1}


def test_what_safetensors_leaves_when_it_is_killed(tmp_path):
    """It writes to `.tmpXXXXXX` and renames; such a file became a part of the artifact."""
    write(tmp_path, 2)
    expected = fingerprint(tmp_path / "data")
    with (
        pytest.raises(KilledError),
        ArtifactJob("dataset", Config(2), tmp_path / "data", overwrite=True).write() as folder,
    ):
        (folder / ".tmpJumBCz").write_bytes(b"half a model")
        raise KilledError
    shutil.rmtree(tmp_path / "data")
    write(tmp_path, 2, resume=True)
    assert fingerprint(tmp_path / "data") == expected


@pytest.fixture
def checkpoints(tmp_path):
    """Opens the checkpoints of a run in a folder, the last two of which are kept, as a new start would."""
    acc = accelerator()

    def open_them(folder=tmp_path):
        model = torch.nn.Linear(1, 1)
        return Checkpoints(folder / "checkpoints", 1, 2, acc, model, torch.optim.Adam(model.parameters()))

    return open_them


def save_four(checkpoints):
    for step in (1, 2, 3, 3):
        checkpoints.save(Progress(step=step))


def test_checkpoints_killed_anywhere(tmp_path, checkpoints):
    for number in itertools.count(1):
        folder = tmp_path / f"{number}"
        (folder / "checkpoints").mkdir(parents=True)
        run = checkpoints(folder)
        if not killed(folder, lambda run=run: save_four(run), number):
            break
        restored = checkpoints(folder)
        step = restored.restore().step
        whole = [int(path.name[-8:]) for path in restored.all()]
        assert step == max(whole, default=0)  # every folder of that name can be loaded
        assert whole or not step
        save_four(restored)
        assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-00000002", "step-00000003"]
    assert number > 30


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    path.unlink() if how == "missing" else path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "flipped", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "process-0.json", "state.json"])
def test_a_damaged_checkpoint_is_skipped(checkpoints, capsys, name, how):
    run = checkpoints()
    for step in (1, 2):
        run.save(Progress(step=step))
    damage(run.all()[-1] / name, how)
    assert checkpoints().restore().step == 1
    message = capsys.readouterr().err
    assert "goes on from step 1 " in message
    if name != "state.json":
        assert "step-00000002 is skipped: " in message and name in message
    run.save(Progress(step=2))
    assert checkpoints().restore().step == 2


def test_checkpoints_of_another_run_are_not_loaded(tmp_path, checkpoints, capsys):
    """Two runs at once once mixed them: the second went on from the first's checkpoints."""
    (tmp_path / "identity.json").write_text('{"config": {"seed": 0}}')
    checkpoints().save(Progress(step=5))
    (tmp_path / "identity.json").write_text('{"config": {"seed": 1}}')
    assert checkpoints().restore() == Progress()
    assert "starting afresh: step-00000005 has run" in capsys.readouterr().err


def test_checkpoints_without_checksums_are_loaded(checkpoints):
    """As earlier versions wrote them."""
    run = checkpoints()
    run.save(Progress(step=5))
    path = run.all()[0] / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({key: state[key] for key in state if key not in ("files", "run", "model", "checksum")}))
    assert checkpoints().restore().step == 5
