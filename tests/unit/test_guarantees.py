"""What docs/guarantees.md promises of outputs and inputs, each promise by one test."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.data.sources import Options, amazon, movielens, recbole, table
from distill.evaluation.inputs import check_names
from distill.labels.exporter import check_numbers
from distill.labels.labeller import Labels
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from distill.runtime.folders import hidden
from distill.runtime.locks import lock_path

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from dataclasses import make_dataclass
from pathlib import Path
from distill.runtime.artifacts import ArtifactJob
job = ArtifactJob("dataset", make_dataclass("Config", [])(), Path(sys.argv[1]))
assert not job.is_finished()
print("holds", flush=True)
time.sleep(60)
"""


@dataclass(frozen=True)
class Config:
    """Some settings."""

    epochs: int = 1


def make(folder, kind="dataset", inputs=(), text="1", **options):
    job = ArtifactJob(kind, Config(), folder, inputs, **options)
    if not job.is_finished():
        with job.write() as partial:
            (partial / "data.txt").write_text(text)
    return artifacts.read(folder, kind)


def test_a_second_run_is_told_who_holds_the_output(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "data")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as run:
        assert run.stdout.readline() == "holds\n"
        with pytest.raises(UserError, match=rf"written by another process: process {run.pid} on .*, since 20\d\d-"):
            make(tmp_path / "data")
        run.kill()
    assert make(tmp_path / "data").folder.is_dir()  # the lock of a killed process is free
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_workers_of_a_launch_take_no_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    job = ArtifactJob("dataset", Config(), tmp_path / "data")
    assert not job.is_finished() and not lock_path(tmp_path / "data").exists()


def test_a_failed_job_leaves_the_output_to_the_next(tmp_path):
    failed = ArtifactJob("dataset", Config(), tmp_path / "data")
    assert not failed.is_finished()
    make(tmp_path / "data")  # the same process, as in a notebook
    assert not lock_path(tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["data.old", "data.partial"])
def test_folders_of_the_user_remain(tmp_path, name):
    make(tmp_path / "data")
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    if name == "data.partial":
        with pytest.raises(UserError, match=r"data\.partial is needed as a working folder, and no command"):
            make(tmp_path / "data", overwrite=True)
        with pytest.raises(UserError, match="no command"), ArtifactJob("dataset", Config(), tmp_path / "data").write():
            pass
    else:
        assert make(tmp_path / "data", overwrite=True, text="2").folder.joinpath("data.txt").read_text() == "2"
    assert (tmp_path / name / "thesis.txt").read_text() == "years of work"


def test_a_linked_output_is_written_beside_its_target(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/data").symlink_to(tmp_path / "disk/data")
    for text in ("1", "2", "3"):
        artifact = make(tmp_path / "run/data", overwrite=True, text=text)
        assert (artifact.folder / "data.txt").read_text() == text
        assert (tmp_path / "run/data").is_symlink() and not (tmp_path / "disk/data").is_symlink()
    assert [path.name for path in (*(tmp_path / "run").iterdir(), *(tmp_path / "disk").iterdir())] == ["data", "data"]


@pytest.mark.parametrize("place", ["a/student", "a/student/child", "a"])
def test_an_output_that_would_destroy_its_input(tmp_path, place):
    student = make(tmp_path / "a/student", "student")
    with pytest.raises(UserError, match=r"which this command reads and would destroy; name another --output"):
        ArtifactJob("student", Config(), tmp_path / place, [student], overwrite=True)
    with pytest.raises(UserError, match="would destroy"):  # a base model is no input, but is read
        ArtifactJob("teacher", Config(), tmp_path / place, reads=[str(tmp_path / "a/student")])
    ArtifactJob("student", Config(), tmp_path / "a/student+memory", [student])
    ArtifactJob("teacher", Config(), tmp_path / "teacher", reads=["meta-llama/hub-name", None])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"\x01" + path.read_bytes()[1:]), "its checksum is not the one"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "it has 99 bytes, 100 were written"),
        (lambda path: path.unlink(), r"data\.txt is missing"),
    ],
)
def test_damaged_inputs_are_named_before_the_work(tmp_path, monkeypatch, damage, message):
    data = make(tmp_path / "dataset", text="x" * 100)
    damage(tmp_path / "dataset/data.txt")
    with pytest.raises(UserError, match=message) as error:
        make(tmp_path / "ids", "semantic_ids", [data])
    assert "data.txt" in str(error.value) and "Make the dataset again with: python scripts/prepare_data.py" in str(
        error.value
    )
    assert not (tmp_path / "ids").exists()
    monkeypatch.setenv("LOHREC_NO_VERIFY", "1")
    make(tmp_path / "ids", "semantic_ids", [data])


def test_manifests_without_checksums_are_read(tmp_path):
    """As earlier versions wrote them."""
    data = make(tmp_path / "dataset")
    del data.manifest["files"], data.manifest["checksum"]
    (tmp_path / "dataset/manifest.json").write_text(json.dumps(data.manifest))
    make(tmp_path / "ids", "semantic_ids", [artifacts.read(tmp_path / "dataset", "dataset")])


@pytest.mark.parametrize("key", ["fingerprint", "config", "inputs", "identity", "files"])
def test_a_manifest_that_was_altered_is_named(tmp_path, key):
    """It holds the checksums of the other files; without its own, another fingerprint or setting was taken as right."""
    data = make(tmp_path / "dataset")
    altered = {"x": 1} if isinstance(data.manifest[key], dict) else "0" * 16
    (tmp_path / "dataset/manifest.json").write_text(json.dumps(data.manifest | {key: altered}))
    with pytest.raises(UserError, match=r"dataset/manifest\.json is damaged: its checksum is not .*prepare_data"):
        artifacts.read(tmp_path / "dataset", "dataset")
    make(tmp_path / "dataset", overwrite=True)
    assert artifacts.read(tmp_path / "dataset", "dataset").fingerprint == data.fingerprint


def test_leftovers_of_a_kill_go_at_the_next_start(tmp_path):
    make(tmp_path / "data")
    for folder in (hidden(tmp_path / "data", "old"), hidden(tmp_path / "data.partial", "removed")):
        folder.mkdir()
    make(tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


TIMES = ["nan", "inf", "-inf", "1e300", "1e400"]


@pytest.mark.parametrize("time", TIMES)
def test_times_that_are_none(tmp_path, time):
    """They were stored as −2⁶³ or so; such an item became a user's first or last."""
    lines = ["u,a,1", f"u,b,{time}", "u,c,3"]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    with pytest.raises(UserError, match=r"interactions\.csv:3: expected a time in seconds, got "):
        table.read(tmp_path, Options())
    text = "\n".join(["user_id:token,item_id:token,timestamp:float", *lines]).replace(",", "\t") + "\n"
    (tmp_path / "N.inter").write_text(text)
    with pytest.raises(UserError, match=r"N\.inter:3: expected a time in seconds, got "):
        recbole.read(tmp_path, Options())
    (tmp_path / "ml").mkdir()
    ratings = ["userId,movieId,rating,timestamp", "1,1,5,1", f"1,2,5,{time}"]
    (tmp_path / "ml/ratings.csv").write_text("\n".join(ratings) + "\n")
    (tmp_path / "ml/movies.csv").write_text("movieId,title,genres\n1,A,Drama\n2,B,Drama\n")
    with pytest.raises(UserError, match=r"ratings\.csv:3: expected a time in seconds, got "):
        movielens.read(tmp_path / "ml", Options())
    (tmp_path / "csv").mkdir()
    reviews = ["rating,title,text,user_id,parent_asin,timestamp", "5,,,u,a,1000", f"5,,,u,b,{time}"]
    (tmp_path / "csv/N.csv").write_text("\n".join(reviews) + "\n")
    with pytest.raises(UserError, match=r"N\.csv:3: expected a time in seconds, got "):
        amazon.read(tmp_path / "csv", Options())


@pytest.mark.parametrize("time", ["NaN", "Infinity", "1e300", "1e400", '"inf"', "100000000000000000"])
def test_times_of_reviews_that_are_none(tmp_path, time):
    line = '{"reviewerID": "u", "asin": "a", "overall": 5, "unixReviewTime": %s}\n'
    (tmp_path / "N.json").write_text(line % 1 + line % time)
    with pytest.raises(UserError, match=r"N\.json:2: expected a number as unixReviewTime, got "):
        amazon.read(tmp_path, Options(max_bad_lines=0))


def test_times_in_parquet_name_the_row(tmp_path):
    rows = {"user_id": ["u"] * 3, "item_id": list("abc"), "timestamp": [1.0, 2.0, float("nan")]}
    pq.write_table(pa.table(rows), tmp_path / "interactions.parquet")
    with pytest.raises(UserError, match=r"interactions\.parquet row 2: expected a time in seconds, got nan"):
        table.read(tmp_path, Options())


@pytest.mark.parametrize("where", ["scores", "log_probs"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_labels_that_are_no_numbers(where, value):
    from distill.data.dataset import Examples

    examples = Examples(np.array([3, 7]), np.array([2, 5]), np.zeros((2, 1), int), np.array([0, 1]))
    scores, log_probs = np.full((2, 4), -np.inf), np.full((2, 3, 5), -np.log(5))
    labels = Labels(np.zeros((2, 4), int), scores, log_probs)
    check_numbers(examples, labels)  # −∞ marks padding
    (scores if where == "scores" else log_probs)[1].flat[2] = value
    with pytest.raises(UserError, match="labels of user 7, position 5, hold NaN or infinity"):
        check_numbers(examples, labels)


@pytest.mark.parametrize("name", ["transitions", "graph", "popularity", "teacher", "teacher+transitions", "target"])
def test_students_named_like_another_row(name):
    check_names([Path("students/dwr"), Path("baselines/sasrec")])
    with pytest.raises(UserError, match="cannot be evaluated under its name"):
        check_names([Path("students/dwr"), Path("students") / name])
    with pytest.raises(UserError, match=r"students/dwr too\. Rename"):
        check_names([Path("students/dwr"), Path("baselines/dwr")])
