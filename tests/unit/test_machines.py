"""Launches over two machines, here two threads with a store between them; tests/distributed has real ones."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from distill.runtime import machines
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from distill.runtime.processes import lost_process

SILENCE = 60.0  # seconds, never reached


@dataclass(frozen=True)
class Settings:
    """Settings of a job."""

    lr: float = 0.1


@pytest.fixture
def both(monkeypatch):
    """Run a function on both machines at once, with the machine's number; returns the results or errors."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "GROUP_WORLD_SIZE": "2"}
    for name, value in (environment | {"TORCHELASTIC_USE_AGENT_STORE": "True", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    thread = threading.local()
    monkeypatch.setattr(machines, "number", lambda: thread.number)
    monkeypatch.setattr(machines, "_jobs", itertools.repeat(0))
    monkeypatch.setattr(machines, "watch", lambda silence: None)

    def call(function):
        def on_machine(number):
            thread.number = number
            try:
                return function(number)
            except UserError as error:
                return error

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(on_machine, range(2)))

    yield call
    del store


def job_of(number, folder, lr=0.1):
    """The job in the first process of machine `number`; only that of machine 0 takes the lock by itself."""
    job = ArtifactJob("student", Settings(lr), folder / "out")
    job.is_writer = job.lock.is_holder = number == 0
    return job


def finish(folder):
    with job_of(0, folder).write() as partial:
        (partial / "weights").write_text("1")


def test_machines_with_disks_of_their_own_both_write_and_the_first_gets_the_result(both, tmp_path):
    jobs = [job_of(number, tmp_path / str(number)) for number in range(2)]
    assert both(lambda number: machines.is_finished(jobs[number], SILENCE)) == [False, False]
    facts = [(job.is_writer, job.separate_disks, job.keeps_result) for job in jobs]
    assert facts == [(True, True, True), (True, True, False)]
    assert all(job.lock.path.exists() for job in jobs)

    def work(number):
        with jobs[number].write(resume=True) as folder:
            (folder / "weights").write_text("1")

    both(work)
    assert [path.name for path in tmp_path.glob("*/*")] == ["out"] and (tmp_path / "0/out").is_dir()


def test_machines_that_share_a_disk_have_one_writer(both, tmp_path):
    jobs = [job_of(number, tmp_path) for number in range(2)]
    assert both(lambda number: machines.is_finished(jobs[number], SILENCE)) == [False, False]
    assert [job.is_writer for job in jobs] == [True, False]
    assert not any(job.separate_disks for job in jobs) and all(job.keeps_result for job in jobs)


def test_the_work_is_finished_when_the_first_machine_has_the_result(both, tmp_path):
    """The second may have been cut off before it removed its checkpoints."""
    finish(tmp_path / "0")
    jobs = [job_of(number, tmp_path / str(number)) for number in range(2)]
    jobs[1].begin()
    assert both(lambda number: machines.is_finished(jobs[number], SILENCE)) == [True, True]
    assert not jobs[1].partial.exists()


def test_a_result_on_another_machine_does_not_count(both, tmp_path):
    finish(tmp_path / "1")
    jobs = [job_of(number, tmp_path / str(number)) for number in range(2)]
    assert both(lambda number: machines.is_finished(jobs[number], SILENCE)) == [False, False]
    assert (tmp_path / "1/out/weights").is_file()


def test_machines_of_other_settings_are_refused_on_both(both, tmp_path):
    jobs = [job_of(number, tmp_path / str(number), lr=0.1 + number) for number in range(2)]
    errors = both(lambda number: machines.is_finished(jobs[number], SILENCE))
    assert all("would not do the work" in str(error) and "lr (0.1 -> 1.1) differs" in str(error) for error in errors)


def test_machines_of_other_code_are_refused(both, tmp_path, monkeypatch):
    versions = iter("ab")
    monkeypatch.setattr(machines, "code_fingerprint", lambda: next(versions))
    jobs = [job_of(number, tmp_path / str(number)) for number in range(2)]
    for error in both(lambda number: machines.is_finished(jobs[number], SILENCE)):
        assert "the code of lohrec-distill differs" in str(error)


def test_a_machine_that_does_not_start_is_named(both, tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "START_SECONDS", 0.3)
    first = job_of(0, tmp_path)
    error, _ = both(lambda number: machines.is_finished(first, SILENCE) if number == 0 else None)
    assert "Machine 1 of 2 has not begun" in str(error) and "--node_rank" in str(error)


class FiveBeats:
    """In place of the module `time`: raises at each thread's fifth sleep."""

    monotonic = time.monotonic

    def __init__(self):
        self.thread = threading.local()

    def sleep(self, seconds):
        self.thread.beats = getattr(self.thread, "beats", 0) + 1
        if self.thread.beats == 5:
            raise UserError("the fifth beat")
        time.sleep(seconds)


def test_signs_of_life_arrive(both, monkeypatch):
    monkeypatch.setattr(machines, "time", FiveBeats())
    signs = [{}, {}]
    both(lambda number: machines._exchange_signs(signs[number], 0.1))
    assert [list(of_machine) for of_machine in signs] == [[1], [0]]


def test_a_silent_machine_ends_the_process(monkeypatch, capsys):
    """Machine 2 was heard an hour ago, machine 1 just now; machine 3 never, which may not have started."""
    monkeypatch.setenv("GROUP_WORLD_SIZE", "4")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(machines.os, "_exit", leave)
    now = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        machines._end_after(60, {1: now, 2: now - 3600}, 0.01)
    message = capsys.readouterr().err
    assert ended.value.code == 2 and message.count("error: ") == 1
    assert "no sign of life from machine 2 of 4 for 60 s" in message and "last checkpoint" in message


def test_interface_towards_an_address():
    """None for loopback, which leads to no other machine, and for what is no address."""
    assert machines.interface_towards("127.0.0.1") is None
    assert machines.interface_towards("no-such-host.invalid") is None


@pytest.mark.parametrize(
    ("processes", "error", "expected"),
    [
        ("2", RuntimeError("[pair.cc:553] Connection closed by peer [10.77.0.2]:1504"), "its own message says why"),
        ("2", RuntimeError("Gloo connectFullMesh failed with ..."), "GLOO_SOCKET_IFNAME=eth0"),
        ("2", RuntimeError("size mismatch"), None),
        ("2", ValueError("Connection closed by peer"), None),
        ("1", RuntimeError("Connection closed by peer"), None),
    ],
)
def test_errors_that_only_say_that_another_process_is_gone(monkeypatch, processes, error, expected):
    monkeypatch.setenv("WORLD_SIZE", processes)
    message = lost_process(error)
    assert message is None if expected is None else expected in message
