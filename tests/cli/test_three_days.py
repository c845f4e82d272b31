"""Three days by their commands: one teacher, IDs that are extended, labels of what changed, students that go on."""

import contextlib
import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from by_command import command_of

from distill import export_soft_labels
from distill.data.dataset import Dataset
from distill.labels.store import LabelStore
from distill.runtime.artifacts import read
from distill.runtime.config import run
from distill.semantic_ids.ids import SemanticIDs
from student import train
from teacher import finetune

DAYS = (1, 2, 3)
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEACHER = [
    "--sizes", json.dumps(SIZES), "--vocab_size", "300", "--epochs", "2", "--valid_users", "10", "--tracker", "none",
]  # fmt: skip
EXPORT = ["--width", "6", "--keep", "5", "--shard_rows", "50", "--encoding", "fp16", "--device", "cpu"]
STUDENT = [
    "--variant", "dwr", "--backbone", "nested", "--epochs", "1", "--candidates", "4", "--batch_size", "64",
    "--valid_users", "10", "--tracker", "none",
]  # fmt: skip


def command(name, *words):
    """Run a command of scripts/, or a module with `main` and `Config`, within this process."""
    module = command_of(name) if isinstance(name, str) else name
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        try:
            run(module.main, module.Config, None, [str(word) for word in words])
        except SystemExit as stop:
            assert stop.code in (0, None), error.getvalue()
    return error.getvalue()


def make_day(root: Path, day: int) -> None:
    """Everything of a day; the first has a teacher, the others go on from the day before."""
    folder, before = root / f"day{day}", root / f"day{day - 1}"
    to = ["--run", folder]
    command("prepare_data.py", "--format", "table", "--input", root / f"logs/day{day}", "--short_users", "drop", *to)
    like = ["--like", before / "embeddings"] if day > 1 else ["--dim", "12"]
    command("embed_items.py", *like, *to)
    sizes = ["--quantiser", "rkmeans", "--levels", "3", "--codebook_size", "32"]
    command("build_semantic_ids.py", *(["--extend", before / "semantic_ids"] if day > 1 else sizes), *to)
    if day == 1:
        command(finetune, *TEACHER, *to)
    reuse = ["--reuse", before / "soft_labels"] if day > 1 else []
    command(export_soft_labels, "--teacher", root / "day1/teacher", *EXPORT, *reuse, *to)
    command(train, *STUDENT, *(["--warm_start", before / "students/dwr"] if day > 1 else []), *to)


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """The root of day1, day2 and day3."""
    root = tmp_path_factory.mktemp("days")
    command("prepare_data.py", "--format", "demo", "--users", "60", "--output", root / "whole")
    command("split_days.py", "--dataset", root / "whole", "--output", root / "logs")
    for day in DAYS:
        make_day(root, day)
    return root


def test_old_items_keep_their_codes_and_new_ones_come(days):
    tables = [SemanticIDs.load(days / f"day{day}/semantic_ids") for day in DAYS]
    codes = [dict(zip(ids.item_ids, ids.codes.tolist(), strict=True)) for ids in tables]
    for old, new in pairwise(codes):
        assert old.items() <= new.items() and len(new) > len(old)


def by_ids(folder, store):
    """Labels by (user id, position): ids of the candidates, scores, and log-probabilities."""
    dataset, block = Dataset.load(folder / "dataset"), store.load()
    users, items = dataset.user_ids.to_pylist(), [*dataset.items["item_id"].to_pylist(), None]
    columns = block.users, block.positions, block.candidates(), block.scores(), block.log_probs()
    return {
        (users[user], position): ([items[item] for item in candidates], scores.tolist(), log_probs)
        for user, position, candidates, scores, log_probs in zip(*columns, strict=True)
    }


def test_labels_of_changed_targets_alone(days, tmp_path):
    labels = [by_ids(days / f"day{day}", LabelStore.open(days / f"day{day}/soft_labels")) for day in DAYS]
    for day, (old, new) in zip(DAYS[1:], pairwise(labels), strict=True):
        facts = read(days / f"day{day}/soft_labels", "soft_labels").manifest["facts"]
        # a day only adds to the ends of sequences, so no earlier history is another
        assert facts["copied"] == len(old) and facts["copied"] + facts["computed"] == facts["targets"] == len(new)
        assert facts["computed"] > 0 and old.keys() < new.keys()
        for key, (candidates, scores, log_probs) in old.items():
            assert new[key][:2] == (candidates, scores)
            np.testing.assert_array_equal(new[key][2], log_probs)
    # new items change candidates, not distributions: those of a full export are the same up to rounding
    words = ["--teacher", days / "day1/teacher", *EXPORT, "--run", days / "day3", "--output", tmp_path / "full"]
    command(export_soft_labels, *words)
    full = by_ids(days / "day3", LabelStore.open(tmp_path / "full"))
    assert full.keys() == labels[2].keys()
    for key, (_, _, log_probs) in full.items():
        np.testing.assert_allclose(labels[2][key][2], log_probs, atol=0.01)
    today = set(pq.read_table(days / "day3/dataset/items.parquet")["item_id"].to_pylist())
    launched = today - set(pq.read_table(days / "day2/dataset/items.parquet")["item_id"].to_pylist())
    candidates = {key: set(row[0]) for key, row in labels[2].items()}
    assert not any(candidates[key] & launched for key in labels[1])
    assert any(candidates[key] & launched for key in labels[2].keys() - labels[1].keys())


def test_the_last_day_is_evaluated_with_the_first_days_teacher(days):
    words = ["--teacher", days / "day1/teacher", "--run", days / "day3", "--device", "cpu"]
    systems = [
        "--systems",
        "[teacher,dwr,popularity]",
        "--content",
        "false",
        "--graph",
        "false",
        "--mixture_users",
        "5",
    ]
    command("evaluate.py", *words, *systems)
    rows = {row["system"]: row for row in json.loads((days / "day3/evaluation/metrics.json").read_text())}
    assert {"teacher", "dwr", "popularity"} <= rows.keys()
    assert len({row["users"] for row in rows.values()}) == 1 and all(0 <= row["ndcg@10"] <= 1 for row in rows.values())
    student = read(days / "day3/students/dwr", "student")
    assert student.inputs["teacher"] == read(days / "day1/teacher", "teacher").fingerprint
    assert (
        student.manifest["identity"]["extra"]["warm_start"] == read(days / "day2/students/dwr", "student").fingerprint
    )
