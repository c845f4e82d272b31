"""A teacher behind a server: the same answers, refusals with a reason, a server that goes and comes back."""

import dataclasses
import json
import time

import numpy as np
import pytest
import safetensors.numpy
from student_shop import ITEMS, LEVELS, SIZE, FakeTeacher
from teacher_server import TeacherServer
from unit.test_on_policy import CONFIG, root, run, tiny  # noqa: F401 - root and tiny are fixtures

from distill.runtime import artifacts
from distill.runtime.errors import UserError
from distill.teachers import remote
from distill.teachers.remote import RemoteTeacher
from distill.teachers.server import MOST_ITEMS

FACTS = {"teacher": "abc", "semantic_ids": "def", "levels": LEVELS, "codebook_size": SIZE}
HISTORIES, TARGETS = np.array([[1, 2, 3], [4, -1, -1]]), np.array([5, 6])


@pytest.fixture
def server():
    with TeacherServer(FACTS) as started:
        yield started


def test_answers_are_the_teachers(server):
    teacher = RemoteTeacher(server.url)
    assert teacher.facts() == FACTS
    expected = FakeTeacher().codeword_log_probs(HISTORIES, TARGETS)
    np.testing.assert_array_equal(teacher.codeword_log_probs(HISTORIES, TARGETS), expected)


@pytest.mark.parametrize(
    ("histories", "items", "message"),
    [
        ([[1, 2]], [1, 2], "1 histories and 2 items"),
        ([[1, 2]], [ITEMS], f"expected item numbers from 0 to {ITEMS - 1}"),
        ([[-1, -1]], [1], "expected histories of 1 to 1000 items"),
        ([[1]] * (MOST_ITEMS + 1), [1] * (MOST_ITEMS + 1), "at most 4096"),
    ],
)
def test_questions_without_an_answer_are_refused(server, histories, items, message):
    with pytest.raises(UserError, match=f"refuses a question \\(422\\): .*{message}"):
        RemoteTeacher(server.url).codeword_log_probs(np.array(histories), np.array(items))


def test_a_server_that_comes_back_is_asked_again(caplog, monkeypatch):
    first = TeacherServer(FACTS)
    port = first.port
    first.stop()
    started = []

    def sleep(seconds):
        if not started:
            started.append(TeacherServer(FACTS, port))
        time.sleep(0.01)

    monkeypatch.setattr(remote, "time", type("Clock", (), {"sleep": staticmethod(sleep), "monotonic": time.monotonic}))
    answer = RemoteTeacher(f"http://127.0.0.1:{port}").codeword_log_probs(HISTORIES, TARGETS)
    started[0].stop()
    np.testing.assert_array_equal(answer, FakeTeacher().codeword_log_probs(HISTORIES, TARGETS))
    with pytest.raises(UserError, match="The checkpoints stay"):
        RemoteTeacher(f"http://127.0.0.1:{port}", patience=0).codeword_log_probs(HISTORIES, TARGETS)
    with pytest.raises(UserError, match="Start it with scripts"):
        RemoteTeacher(f"http://127.0.0.1:{port}").facts()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"no safetensors", "does not answer as"),
        (safetensors.numpy.save({"other": np.zeros(1)}), "does not answer as"),
        (safetensors.numpy.save({"log_probs": np.zeros((1, LEVELS, SIZE), np.float16)}), r"shape \(1, 3, 6\)"),
    ],
)
def test_answers_that_are_none(monkeypatch, answer, message):
    monkeypatch.setattr(RemoteTeacher, "_open", lambda *_: answer)
    with pytest.raises(UserError, match=message):
        RemoteTeacher("http://127.0.0.1:1").codeword_log_probs(HISTORIES, TARGETS)


def test_a_student_asks_a_server(root, tmp_path):  # noqa: F811
    options = {"backbone": "nested", "on_policy": 0.5, "epochs": 1}
    ids = artifacts.read(root / "semantic_ids", "semantic_ids").fingerprint
    with TeacherServer(FACTS | {"semantic_ids": ids}) as server:
        run(root, tmp_path / "remote", "distill", **options, teacher_url=server.url)
    curve = json.loads((tmp_path / "remote/curve.json").read_text())
    assert np.isfinite(curve["retriever"][0]["loss"])
    with TeacherServer(FACTS) as other, pytest.raises(UserError, match="was tuned on semantic_ids def"):
        run(root, tmp_path / "other", "distill", **options, teacher_url=other.url)
    assert not (tmp_path / "other").exists() and dataclasses.replace(CONFIG).teacher_url is None
