"""The real command of recommend.py, without the teacher's libraries, and its messages for bad input."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from cli.by_command import ROOT
from student_shop import ITEMS, Nothing, make_shop
from unit.test_recommender import shop

from distill.runtime.artifacts import ArtifactJob, read
from student.item_recommender import ItemRecommender
from student.models.item_models import SASRec, SASRecConfig

# libraries that recommending does not need
BARE = "import runpy, sys\nfor name in ('transformers', 'peft', 'datasets', 'accelerate'): sys.modules[name] = None\n"
BARE += "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    shop(ranker=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def item_run(tmp_path_factory):
    """A run's folder with a data set and a SASRec over its items."""
    root = tmp_path_factory.mktemp("run")
    make_shop(root, [5, 5])
    recommender = ItemRecommender(SASRec(SASRecConfig(ITEMS, dim=8)).eval(), {"network": "sasrec"})
    data = read(root / "dataset", "dataset")
    with ArtifactJob("baseline", Nothing(), root / "baselines/sasrec", [data]).write() as folder:
        recommender.save_pretrained(folder)
    return root


def recommend(folder, *words, text=None):
    done = subprocess.run(
        [sys.executable, "-c", BARE, ROOT / "scripts/recommend.py", "--student", folder, *words],
        capture_output=True,
        text=True,
        input=text,
        cwd=ROOT,
    )
    return done.returncode, done.stdout, done.stderr


def test_from_the_shell(student):
    code, out, error = recommend(student, "--history", "i1, i2", "--k", "3")
    assert code == 0, error
    expected = [item.item_id for item in shop(ranker=True).recommend([["i1", "i2"]], k=3)[0]]
    rows = [line.split() for line in out.splitlines()]
    assert "after i1, i2" in out and [row[1] for row in rows if len(row) == 4] == expected


def test_a_file_of_histories(student, tmp_path):
    (tmp_path / "histories").write_text('i1,i2\n["i3"]\nnowhere\n')
    code, _, error = recommend(student, "--file", tmp_path / "histories", "--format", "json")
    message = "error: Unknown item id 'nowhere' in history 2: it has no semantic ID (skip_unknown omits it).\n"
    assert code == 2 and error == message
    words = ("--format", "json", "--skip_unknown", "true", "--k", "4")
    code, out, error = recommend(student, "--file", tmp_path / "histories", *words)
    assert code == 0, error
    first, second, third = map(json.loads, out.splitlines())
    expected = shop(ranker=True).recommend([["i1", "i2"], ["i3"]], k=4)
    assert [item["item_id"] for item in first["items"]] == [item.item_id for item in expected[0]]
    assert [item["item_id"] for item in second["items"]] == [item.item_id for item in expected[1]]
    assert third == {"history": ["nowhere"], "items": []}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Name either --history"),
        (("--history", ","), "--history, line 1: expected item ids"),
        (("--history", '["i1"'), "not a JSON list of item ids"),
        (("--file", "/nowhere/at/all"), "Cannot read /nowhere/at/all: No such file"),
        (("--history", "i1", "--k", "0"), "--k is 0; expected a whole number of at least 1"),
    ],
)
def test_bad_input(student, words, message):
    code, _, error = recommend(student, *words)
    assert code == 2 and message in error and "Traceback" not in error


def test_a_folder_that_is_no_student(tmp_path):
    code, _, error = recommend(tmp_path, "--history", "i1")
    assert code == 2 and "is not a student" in error


def test_a_network_over_items_takes_ids_from_its_data_set(item_run):
    folder = item_run / "baselines/sasrec"
    code, out, error = recommend(folder, "--history", "i7,i3", "--k", "3", "--format", "json")
    assert code == 0, error
    scores = ItemRecommender.from_pretrained(folder).network_scores(np.array([[7, 3]]))[0]
    scores[[7, 3]] = -np.inf  # the history's items are left out, as in training
    best = np.argsort(-scores)[:3]
    items = json.loads(out)["items"]
    assert [item["item_id"] for item in items] == [f"i{item}" for item in best]
    assert [item["score"] for item in items] == pytest.approx(scores[best].tolist())
    words = ("--history", "nowhere", "--skip_unknown", "true", "--format", "json")
    assert recommend(folder, *words)[1] == '{"history": ["nowhere"], "items": []}\n'
    code, _, error = recommend(folder, "--history", "nowhere")
    message = "error: Unknown item id 'nowhere' in history 0: the data set lacks it (skip_unknown omits it).\n"
    assert code == 2 and error == message


def test_a_network_over_items_needs_its_own_data_set(item_run, tmp_path):
    shutil.copytree(item_run / "baselines/sasrec", tmp_path / "elsewhere/baselines/sasrec")
    folder = tmp_path / "elsewhere/baselines/sasrec"
    code, _, error = recommend(folder, "--history", "i1")
    assert (code, error) == (2, f"error: {folder} names no items: give its data set by --dataset.\n")
    code, out, error = recommend(folder, "--history", "i1", "--dataset", item_run / "dataset")
    assert code == 0 and "after i1" in out, error
    make_shop(tmp_path / "other", [5, 6])
    code, _, error = recommend(folder, "--history", "i1", "--dataset", tmp_path / "other/dataset")
    message = f"error: {folder} was not trained on {tmp_path / 'other/dataset'}: name its data set by --dataset.\n"
    assert (code, error) == (2, message)
