"""Launches of two processes (gloo, on CPUs), one of which is killed at a random moment."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from .processes import ROOT
from .snapshot import differences, snapshot
from .trials import Trials

LIMIT = 1800.0  # seconds
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]


def try_launches(trials: Trials, number: int) -> None:
    """Kill one worker at random moments; the launch fails, and the same command ends as an unbroken launch.

    Two processes do not end as one does, so the launch is compared with an unbroken launch.
    """
    started = time.monotonic()
    trials.start_over()
    whole = subprocess.run(words(trials), capture_output=True, text=True, env=environment(), timeout=LIMIT)
    duration, expected = time.monotonic() - started, snapshot(trials.shop.work)
    assert whole.returncode == 0, whole.stderr[-3000:]
    for _ in range(number):
        trials.start_over()
        victim = int(trials.rng.integers(2))
        code, moment = launch_and_kill(trials, victim, trials.rng.uniform(0.3, 1) * duration)
        if moment < 0:  # it was faster than the unbroken launch: nothing was killed
            continue
        description = f"worker {victim} after {moment:.1f} of {duration:.1f} s"
        again = subprocess.run(words(trials), capture_output=True, text=True, env=environment(), timeout=LIMIT)
        difference = differences(snapshot(trials.shop.work), expected)
        if code == 0:
            trials.results.add("launch", "unkind", f"{description}: the launch ended with exit code 0")
        elif again.returncode:
            trials.results.add("launch", "unkind", f"{description}: {again.stderr[-1000:]}")
        else:
            trials.results.add("launch", "differing" if difference else "equal", f"{description}: {difference[:4]}")


def launch_and_kill(trials: Trials, victim: int, after: float) -> tuple[int, float]:
    """Launch, and kill a worker after some seconds; returns the exit code and when it was, -1 if it had ended."""
    log = open(trials.shop.log, "w")  # noqa: SIM115
    with log, subprocess.Popen(words(trials), stdout=log, stderr=log, env=environment()) as launch:
        started = time.monotonic()
        moment = -1.0
        while launch.poll() is None and moment < 0:
            time.sleep(0.05)
            passed = time.monotonic() - started
            workers = find_workers(launch.pid)
            if passed >= after and len(workers) > victim:
                workers[victim].kill()
                moment = passed
        return launch.wait(LIMIT), moment


def find_workers(launcher: int) -> list[psutil.Process]:
    """List the launch's workers, by rank."""
    workers = {}
    for process in psutil.Process(launcher).children():
        try:
            workers[int(process.environ()["RANK"])] = process
        except (psutil.Error, KeyError):  # it ends, or has not started yet
            continue
    return [workers[rank] for rank in sorted(workers)]


def words(trials: Trials) -> list[str]:
    """Write the launch."""
    script, *options = trials.words
    return [*LAUNCHER, str(Path(ROOT / script)), *options]


def environment() -> dict[str, str]:
    """Set one thread, no network and this checkout."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
