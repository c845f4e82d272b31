import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import xxhash

from distill.runtime import artifacts, checksums, commands
from distill.runtime.artifacts import ArtifactJob, check_agreement, fingerprint
from distill.runtime.config import JobSettings
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class Config:
    """Some settings."""

    epochs: int = 3
    folder: Path | None = None
    device: str = field(default="cpu", metadata={"identity": False})


def make(root, name="ids", kind="semantic_ids", config=Config(), text="1", inputs=(), **more):
    job = ArtifactJob(kind, config, root / name, inputs, **more)
    with job.write() as folder:
        (folder / "data.txt").write_text(text)
    return artifacts.read(root / name, kind)


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_written_and_read(tmp_path):
    artifact = make(tmp_path, text="hello")
    assert names(tmp_path) == ["ids"] and names(tmp_path / "ids") == ["data.txt", "manifest.json"]
    assert artifact.kind == "semantic_ids" and artifact.fingerprint == fingerprint(tmp_path / "ids")
    assert artifact.config == {"epochs": 3, "folder": None, "device": "cpu"} and artifact.inputs == {}
    assert {"command", "commit", "created", "seconds", "peak_mib", "schema"} <= artifact.manifest.keys()


def test_ancestors_are_passed_on(tmp_path):
    data = make(tmp_path, "dataset", "dataset")
    ids = make(tmp_path, inputs=[data], text="2")
    teacher = make(tmp_path, "teacher", "teacher", inputs=[ids], text="3")
    assert teacher.inputs == {"dataset": data.fingerprint, "semantic_ids": ids.fingerprint}


def test_a_model_is_its_files(tmp_path):
    """Also those of sub-folders; not texts about it, hidden files or times."""
    model = tmp_path / "model"
    (model / "1_Pooling").mkdir(parents=True)
    (model / ".cache").mkdir()
    counted, others = ["1_Pooling/config.json", "model.safetensors"], [".cache/at.json", "README.md", "manifest.json"]
    for name in counted + others:
        (model / name).write_text("old")
    before = checksums.model_identity(model)
    assert before == dict.fromkeys(counted, (3, xxhash.xxh3_64_hexdigest(b"old")))
    for name in others:
        (model / name).write_text("new")
    assert checksums.model_identity(model) == before
    (model / "model.safetensors").write_text("new")  # of the same size
    assert checksums.model_identity(model) != before


def test_a_large_file_is_sampled(tmp_path, monkeypatch):
    """Two bytes of every four, and the last two."""
    for name, value in (("WHOLE_BYTES", 10), ("SAMPLE_STEP", 4), ("SAMPLE_BYTES", 2)):
        monkeypatch.setattr(checksums, name, value)
    for content, sampled in ((b"0123456789", b"0123456789"), (b"0123456789A", b"0145899A")):
        (tmp_path / "file").write_bytes(content)
        assert checksums.sampled_checksum(tmp_path / "file") == xxhash.xxh3_64_hexdigest(sampled)


def test_finished_work_is_skipped(tmp_path, capsys):
    make(tmp_path)
    assert ArtifactJob("semantic_ids", Config(), tmp_path / "ids").is_finished()
    assert "finished" in capsys.readouterr().err


def test_new_work_is_not_finished(tmp_path):
    assert not ArtifactJob("semantic_ids", Config(), tmp_path / "ids").is_finished()
    (tmp_path / "ids").mkdir()  # an empty folder is in nobody's way
    assert not ArtifactJob("semantic_ids", Config(), tmp_path / "ids").is_finished()
    make(tmp_path)


def test_where_and_how_is_no_reason_to_repeat(tmp_path):
    make(tmp_path)
    assert ArtifactJob("semantic_ids", Config(folder=tmp_path, device="cuda"), tmp_path / "ids").is_finished()


def test_a_changed_config_repeats_and_says_why(tmp_path, capsys):
    make(tmp_path)
    job = ArtifactJob("semantic_ids", Config(epochs=5), tmp_path / "ids")
    assert not job.is_finished()
    assert "made again, because epochs (3 -> 5) changed" in capsys.readouterr().err


def test_a_changed_input_repeats_and_says_why(tmp_path, capsys):
    make(tmp_path, inputs=[make(tmp_path, "dataset", "dataset", text="old")])
    data = make(tmp_path, "dataset", "dataset", text="new")
    assert not ArtifactJob("semantic_ids", Config(), tmp_path / "ids", [data]).is_finished()
    assert "because input dataset changed" in capsys.readouterr().err
    data = make(tmp_path, "dataset", "dataset", text="old")
    assert ArtifactJob("semantic_ids", Config(), tmp_path / "ids", [data]).is_finished()


def test_a_changed_extra_repeats(tmp_path, capsys):
    make(tmp_path, extra={"raw": [1, 2]})
    assert ArtifactJob("semantic_ids", Config(), tmp_path / "ids", extra={"raw": (1, 2)}).is_finished()
    assert not ArtifactJob("semantic_ids", Config(), tmp_path / "ids", extra={"raw": [1, 3]}).is_finished()
    assert "because raw changed" in capsys.readouterr().err


def test_overwrite_repeats(tmp_path):
    make(tmp_path)
    assert not ArtifactJob("semantic_ids", Config(), tmp_path / "ids", overwrite=True).is_finished()
    assert make(tmp_path, text="2", overwrite=True).folder.joinpath("data.txt").read_text() == "2"
    assert names(tmp_path) == ["ids"]


@dataclass(frozen=True)
class JobConfig(JobSettings):
    """A config as commands have it."""

    epochs: int = 3


def test_check_asks_only_whether_the_work_is_finished(tmp_path):
    with pytest.raises(SystemExit) as done:
        ArtifactJob("semantic_ids", JobConfig(check=True), tmp_path / "ids").is_finished()
    assert done.value.code == 1
    make(tmp_path, config=JobConfig())
    assert ArtifactJob("semantic_ids", JobConfig(check=True), tmp_path / "ids").is_finished()


def killed(job, resume=False):
    with pytest.raises(KeyboardInterrupt), job.write(resume) as folder:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt


def test_a_kill_leaves_the_old_artifact(tmp_path):
    before = make(tmp_path)
    killed(ArtifactJob("semantic_ids", Config(epochs=5), tmp_path / "ids"))
    after = artifacts.read(tmp_path / "ids", "semantic_ids")
    assert after.manifest == before.manifest and names(after.folder) == ["data.txt", "manifest.json"]
    make(tmp_path, config=Config(epochs=5), text="2")
    assert names(tmp_path) == ["ids"] and names(after.folder) == ["data.txt", "manifest.json"]


def test_a_kill_leaves_nothing_where_there_was_nothing(tmp_path):
    killed(ArtifactJob("semantic_ids", Config(), tmp_path / "ids"))
    assert not (tmp_path / "ids").exists()
    with pytest.raises(UserError, match="No semantic_ids at"):
        artifacts.read(tmp_path / "ids", "semantic_ids")


@pytest.mark.parametrize(
    ("config", "more", "resume", "kept"),
    [
        (Config(), {}, True, True),
        (Config(device="cuda"), {}, True, True),
        (Config(), {}, False, False),
        (Config(epochs=4), {}, True, False),
        (Config(), {"extra": {"raw": 1}}, True, False),
        (Config(), {"overwrite": True}, True, False),
    ],
)
def test_resume_keeps_only_its_own_work(tmp_path, config, more, resume, kept):
    killed(ArtifactJob("semantic_ids", Config(), tmp_path / "ids"), resume=True)
    with ArtifactJob("semantic_ids", config, tmp_path / "ids", **more).write(resume) as folder:
        assert (folder / "half.txt").exists() == kept
    assert ("half.txt" in names(tmp_path / "ids")) == kept
    assert "identity.json" not in names(tmp_path / "ids")


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_folders_are_never_replaced(tmp_path, overwrite):
    (tmp_path / "ids").mkdir()
    (tmp_path / "ids" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and is no semantic_ids"):
        ArtifactJob("semantic_ids", Config(), tmp_path / "ids", overwrite=overwrite).is_finished()
    make(tmp_path, "dataset", "dataset")
    with pytest.raises(UserError, match=r"Expected a semantic_ids at .*, found a dataset"):
        ArtifactJob("semantic_ids", Config(), tmp_path / "dataset", overwrite=overwrite).is_finished()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="exists and is no semantic_ids"):
        ArtifactJob("semantic_ids", Config(), tmp_path / "file", overwrite=overwrite).is_finished()
    assert names(tmp_path / "ids") == ["thesis.txt"]


def test_an_unwritable_place_is_one_message(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match="Cannot write to"),
        ArtifactJob("dataset", Config(), tmp_path / "file" / "d").write(),
    ):
        pass


def test_agreement(tmp_path):
    data = make(tmp_path, "dataset", "dataset")
    first = make(tmp_path, "ids", inputs=[data], text="codebook 1")
    labels = make(tmp_path, "labels", "soft_labels", inputs=[first], text="labels")
    check_agreement(data, first, labels)
    second = make(tmp_path, "ids2", inputs=[data], text="codebook 2")
    with pytest.raises(UserError) as error:
        check_agreement(data, second, labels)
    for part in ("ids2", "labels", "do not belong together", first.fingerprint, second.fingerprint):
        assert part in str(error.value)
    with pytest.raises(UserError):  # a job refuses them before it does anything
        ArtifactJob("student", Config(), tmp_path / "student", [second, labels])


def test_grandparents_agree_too(tmp_path):
    old = make(tmp_path, "dataset", "dataset", text="old")
    ids = make(tmp_path, inputs=[old])
    labels = make(tmp_path, "labels", "soft_labels", inputs=[ids])
    new = make(tmp_path, "dataset", "dataset", text="new")
    with pytest.raises(UserError, match="was made from dataset"):
        check_agreement(new, labels)


def test_students_stand_side_by_side(tmp_path):
    ids = make(tmp_path)
    students = [make(tmp_path, name, "student", inputs=[ids], text=name) for name in ("tiger", "dwr")]
    check_agreement(ids, *students)


def test_read_errors(tmp_path):
    with pytest.raises(UserError, match=r"No dataset at .*nowhere.*scripts/prepare_data\.py"):
        artifacts.read(tmp_path / "nowhere", "dataset")
    artifact = make(tmp_path, "dataset", "dataset")
    with pytest.raises(UserError, match=r"Expected a teacher at .*, found a dataset.*teacher/finetune\.py"):
        artifacts.read(artifact.folder, "teacher")
    path = artifact.folder / "manifest.json"
    path.write_text(json.dumps(artifact.manifest | {"schema": 99}))
    with pytest.raises(UserError, match="has schema 99, this version reads"):
        artifacts.read(artifact.folder, "dataset")
    path.unlink()
    with pytest.raises(UserError, match=r"is not a finished dataset: it has no manifest\.json"):
        artifacts.read(artifact.folder, "dataset")


@pytest.mark.parametrize("missing", ["kind", "schema", "fingerprint", "inputs", "config", "identity"])
def test_manifests_with_missing_entries(tmp_path, missing):
    artifact = make(tmp_path, "dataset", "dataset")
    del artifact.manifest[missing]
    (artifact.folder / "manifest.json").write_text(json.dumps(artifact.manifest))
    with pytest.raises(UserError, match="is damaged"):
        ArtifactJob("dataset", Config(), artifact.folder).is_finished()


@pytest.mark.parametrize("content", [b'{"kind": "data', b"[]", b"", b"\xff\xfe\x00"])
def test_damaged_manifests(tmp_path, content):
    artifact = make(tmp_path, "dataset", "dataset")
    (artifact.folder / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        artifacts.read(artifact.folder, "dataset")


def test_overwrite_replaces_another_schema(tmp_path):
    """The message about an old schema says to use --overwrite: it has to help."""
    artifact = make(tmp_path, "dataset", "dataset")
    (artifact.folder / "manifest.json").write_text(json.dumps(artifact.manifest | {"schema": 0}))
    with pytest.raises(UserError, match="--overwrite"):
        ArtifactJob("dataset", Config(), artifact.folder).is_finished()
    assert not ArtifactJob("dataset", Config(), artifact.folder, overwrite=True).is_finished()


def test_fingerprint_is_of_content(tmp_path):
    def fresh(name, files):
        folder = tmp_path / name
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        return folder

    files = {"a.txt": "1", "sub/b.txt": "2"}
    first, second = fresh("x", files), fresh("y", dict(reversed(files.items())))
    os.utime(second / "a.txt", (0, 0))
    assert fingerprint(first) == fingerprint(second)
    (first / "manifest.json").write_text("{}")
    assert fingerprint(first) == fingerprint(second)
    others = [
        {"a.txt": "1", "sub/b.txt": "3"},
        {"a.txt": "1", "b.txt": "2"},
        {"a.txt": "12", "sub/b.txt": ""},
        {"a.txt": "1"},
        {**files, "c.txt": ""},
    ]
    hashes = [fingerprint(fresh(f"z{number}", other)) for number, other in enumerate(others)]
    assert len({*hashes, fingerprint(second)}) == len(others) + 1


def test_the_commit_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "__file__", str(tmp_path / "commands.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commands.commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    clean = commands.commit()
    assert clean and not clean.endswith("-dirty")
    (tmp_path / "file").write_text("2")
    assert commands.commit() == f"{clean}-dirty"
    monkeypatch.setenv("PATH", "")
    assert commands.commit() is None


def test_students_with_a_memory_name_the_command_that_adds_one(tmp_path):
    folder = tmp_path / "dwr+memory"
    made_with = f"Make it with: python scripts/add_memory.py --student {tmp_path}/dwr --run {tmp_path}"
    with pytest.raises(UserError, match=re.escape(f"No student at {folder}. {made_with}")):
        artifacts.read(folder, "student")
    folder.mkdir()
    with pytest.raises(UserError, match=re.escape(made_with)):
        artifacts.read(folder, "student")
    made = make(tmp_path, "dwr+memory", "student", inputs=[make(tmp_path, "dataset", "dataset", text="old")])
    other = make(tmp_path, "dwr", "student", inputs=[make(tmp_path, "dataset", "dataset", text="new")])
    again = f"python scripts/add_memory.py --student {tmp_path}/dwr --run {tmp_path}"
    both = f"--variant tiger --run {tmp_path} --output {tmp_path}/dwr or {again}"
    with pytest.raises(UserError, match=re.escape(both)):
        check_agreement(made, other)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 0}))
    with pytest.raises(UserError, match=re.escape(f"{made_with} --overwrite")):
        artifacts.read(folder, "student")


@pytest.mark.parametrize(
    ("kind", "place", "expected"),
    [
        ("dataset", "dataset", "python scripts/prepare_data.py --run {run}"),
        ("soft_labels", "soft_labels", "python distill/export_soft_labels.py --run {run}"),
        ("teacher", "teacher", "accelerate launch teacher/finetune.py --run {run}"),
        ("student", "students/dtr", "accelerate launch student/train.py --variant dtr --run {run}"),
        ("student", "students/dtr-seed3", "accelerate launch student/train.py --variant dtr --seeds 3 --run {run}"),
        (
            "student",
            "students/dwr+memory",
            "python scripts/add_memory.py --student {run}/students/dwr --run {run}",
        ),
        (
            "student",
            "students/dwr+memory+content",
            "python scripts/add_memory.py --student {run}/students/dwr --content true --run {run}",
        ),
        ("baseline", "baselines/gru4rec", "python student/baseline.py --network gru4rec --run {run}"),
        ("baseline", "baselines/sasrec-list", "python student/baseline.py --network sasrec --loss list --run {run}"),
        ("soft_labels", "labels", "python distill/export_soft_labels.py --run {run} --output {run}/labels"),
    ],
)
def test_hints_name_the_run_of_the_missing_folder(tmp_path, monkeypatch, kind, place, expected):
    monkeypatch.setattr("sys.argv", ["train.py"])
    run = tmp_path / "run"
    with pytest.raises(UserError) as error:
        artifacts.read(run / place, kind)
    assert str(error.value) == f"No {kind} at {run / place}. Make it with: {expected.format(run=run)}"


@pytest.mark.parametrize("style", ["two words", "one word"])
def test_hints_name_the_config_beside_the_running_commands(tmp_path, monkeypatch, style):
    configs, run = tmp_path / "configs", tmp_path / "run"
    configs.mkdir()
    (configs / "export.yaml").write_text("")
    given = configs / "student.yaml"
    one_word = [f"--config={given}", f"--run={run}"]
    words = one_word if style == "one word" else [part for word in one_word for part in word.split("=")]
    monkeypatch.setattr("sys.argv", ["train.py", *words])
    export = f"python distill/export_soft_labels.py --config {configs}/export.yaml"
    assert commands.command_for("soft_labels", run / "soft_labels") == f"{export} --run {run}"
    elsewhere = commands.command_for("soft_labels", tmp_path / "labels", "--keep 9")
    assert elsewhere == f"{export} --run {run} --keep 9 --output {tmp_path}/labels"
    assert commands.command_for("dataset", tmp_path / "a run/dataset").endswith(f"--run '{tmp_path}/a run'")
    # no teacher.yaml beside it: the default config is read
    assert commands.command_for("teacher", run / "teacher") == f"accelerate launch teacher/finetune.py --run {run}"


def test_a_working_folder_from_which_nobody_can_go_on_is_deleted(tmp_path):
    def fail(name, resume, files):
        with (
            pytest.raises(ZeroDivisionError),
            ArtifactJob("student", Config(), tmp_path / name).write(resume) as folder,
        ):
            for file in files:
                (folder / file).write_text("checkpoint")
            raise ZeroDivisionError
        return names(tmp_path)

    assert fail("a", False, ["half"]) == []
    assert fail("b", True, []) == []  # refused before its first checkpoint
    assert fail("c", True, ["step"]) == ["c.partial"]
