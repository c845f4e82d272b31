"""The real command of recommend.py, without the teacher's libraries, and its messages for bad input."""

import json
import subprocess
import sys

import pytest
from cli.by_command import ROOT
from unit.test_recommender import shop

# libraries that recommending does not need
BARE = "import runpy, sys\nfor name in ('transformers', 'peft', 'datasets', 'accelerate'): sys.modules[name] = None\n"
BARE += "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    shop(ranker=True).save_pretrained(folder)
    return folder


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
