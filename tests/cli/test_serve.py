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
from distill.runtime.errors import UserError
from scripts.serve import Config, main
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


@pytest.fixture(scope="module")
def restarted(student, tmp_path_factory):
    """A server that was killed while events came in, and started again: process, address, acknowledged numbers."""
    arguments = ("--student", student, "--events", tmp_path_factory.mktemp("events") / "events.sqlite")
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
    yield process, address, acknowledged
    process.terminate()
    process.wait(30)


def test_acknowledged_events_survive_a_kill(restarted):
    _, address, acknowledged = restarted
    with httpx.Client(base_url=address) as http:
        answer = http.post("/v1/recommend", json={"histories": [["i4"]], "k": 1}).json()
        assert answer["lists"][0][0]["item_id"] == "i20"  # only the events say so
        (line,) = [row for row in http.get("/metrics").text.splitlines() if row.startswith("memory_last_event ")]
        assert float(line.split()[1]) >= max(acknowledged)


def test_a_reload_and_its_undoing_keep_the_lists_of_the_same_student(restarted):
    _, address, _ = restarted
    body = {"histories": [["i4"]], "k": 5}
    with httpx.Client(base_url=address) as http:
        before = http.post("/v1/recommend", json=body).json()
        for route in ("reload", "rollback"):
            assert http.post(f"/v1/admin/{route}", json={}).status_code == 200
            assert http.post("/v1/recommend", json=body).json() == before


def test_a_stop_answers_what_has_begun(restarted):
    """The last test of the shared process."""
    process, address, _ = restarted
    answers = []
    body = {"histories": [["i1"]] * 64}
    client = threading.Thread(target=lambda: answers.append(httpx.post(f"{address}/v1/explain", json=body)))
    client.start()
    while " 0.0" in next(
        row for row in httpx.get(f"{address}/metrics").text.splitlines() if row.startswith("waiting_queries ")
    ):
        assert client.is_alive()
    process.send_signal(signal.SIGTERM)
    client.join(30)
    assert [(answer.status_code, len(answer.json()["lists"])) for answer in answers] == [(200, 64)]
    assert process.wait(30) in (0, -signal.SIGTERM)


def test_a_folder_without_a_student_is_one_message(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        main(parse(Config, argv=["--student", str(tmp_path)]))


def test_graphs_are_for_processors():
    with pytest.raises(UserError, match="--graphs onnx is for processors, and --device is cuda"):
        main(Config(graphs="onnx", device="cuda"))


def test_the_images_command_parses():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    (entry,) = (json.loads(line.split(" ", 1)[1]) for line in lines if line.startswith("ENTRYPOINT"))
    assert entry[:2] == ["python", "scripts/serve.py"]
    config = parse(Config, argv=[*entry[2:], "--device", "cuda", "--allowed_hosts", "shop.example,www.shop.example"])
    assert (config.host, config.student, config.events) == (
        "0.0.0.0",
        [Path("/student")],
        Path("/events/events.sqlite"),
    )
    assert (config.device, config.allowed_hosts) == ("cuda", ["shop.example", "www.shop.example"])
