"""The real server: killed under load it keeps what it acknowledged; told to stop it answers what it has begun."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from student_shop import Nothing
from unit.test_recommender import N_ITEMS, shop

from distill.baselines.counting import TransitionSettings, count_transitions
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import parse
from student.transition_memory import TransitionMemory

ROOT = Path(__file__).parents[2]


def start(*arguments):
    """Start the server on a free port; returns the process and its address."""
    command = [sys.executable, ROOT / "scripts/serve.py", "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    line = process.stdout.readline()
    assert " on http://127.0.0.1:" in line, line
    return process, line.split(" on ")[1].strip()


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A student of random weights with an empty memory."""
    folder, rule = tmp_path_factory.mktemp("serve") / "students" / "tiny+memory", TransitionSettings(window=1)
    counts = count_transitions(np.zeros(0, int), np.array([0]), N_ITEMS, 1, rule.decay)
    with ArtifactJob("student", Nothing(), folder).write() as partial:
        shop().with_transition_memory(TransitionMemory(counts, rule, weight=0.9)).save_pretrained(partial)
    return folder


def test_acknowledged_events_survive_a_kill(student, tmp_path):
    arguments = ("--student", student, "--events", tmp_path / "events.sqlite")
    process, address = start(*arguments)
    acknowledged, started = [], threading.Event()

    def send():
        with httpx.Client(base_url=address) as http:
            for number in range(100_000):
                events = [{"user_id": f"u{number}", "item_id": item} for item in ("i4", "i20")]
                try:
                    response = http.post("/v1/events", json={"events": events})
                except httpx.TransportError:
                    return
                assert response.status_code == 200, response.text
                acknowledged.append(response.json()["last_event"])
                if len(acknowledged) == 20:
                    started.set()

    sender = threading.Thread(target=send)
    sender.start()
    assert started.wait(60)
    process.kill()
    process.wait()
    sender.join(60)
    process, address = start(*arguments)
    try:
        with httpx.Client(base_url=address) as http:
            answer = http.post("/v1/recommend", json={"histories": [["i4"]], "k": 1}).json()
            assert answer["lists"][0][0]["item_id"] == "i20"  # only the events say so
            (line,) = [row for row in http.get("/metrics").text.splitlines() if row.startswith("memory_last_event ")]
            assert float(line.split()[1]) >= max(acknowledged)
    finally:
        process.terminate()
        process.wait(30)


def test_a_stop_answers_what_has_begun(student):
    process, address = start("--student", student, "--window_ms", "700")
    answers = []
    body = {"histories": [["i1"]]}
    client = threading.Thread(target=lambda: answers.append(httpx.post(f"{address}/v1/recommend", json=body)))
    client.start()
    while httpx.get(f"{address}/metrics").text.count("waiting_queries 1.0") == 0:
        assert client.is_alive()
    process.send_signal(signal.SIGTERM)
    client.join(30)
    assert [answer.status_code for answer in answers] == [200]
    assert process.wait(30) in (0, -signal.SIGTERM)


def test_a_folder_without_a_student_is_one_message(tmp_path):
    command = [sys.executable, ROOT / "scripts/serve.py", "--student", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert result.returncode == 2
    assert "Traceback" not in result.stderr and str(tmp_path) in result.stderr


def test_the_images_command_parses():
    from scripts.serve import Config

    lines = (ROOT / "Dockerfile").read_text().splitlines()
    entry, command = (
        json.loads(line.split(" ", 1)[1]) for word in ("ENTRYPOINT", "CMD") for line in lines if line.startswith(word)
    )
    assert entry == ["python", "scripts/serve.py"]
    config = parse(Config, argv=command)
    assert config.host == "0.0.0.0"
    assert config.student == [Path("/student")]
