"""A Ray cluster of two machines without a common disk labels a set: a cut cable ends the export, which then goes on.

The head, which labels nothing, and the driver are on the first machine; all shards are labelled on the second.
"""

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from export_run import ENVIRONMENT, MEMORY, SETTINGS, content, make_run
from two_machines import ADDRESSES, TwoMachines, skip_without_namespaces

from distill import export_soft_labels as export

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
HEAD = f"{ADDRESSES[0]}:6379"
TIMEOUT = "40"  # seconds without a finished shard; the first one waits for torch to be imported


@pytest.fixture
def pair():
    """Two machines with the same inputs on both disks."""
    skip_without_namespaces()
    machines = TwoMachines()
    try:
        first, second = machines.disks
        make_run(first)
        shutil.copytree(first, second, dirs_exist_ok=True, ignore=shutil.ignore_patterns("hosts"))
        yield machines
    finally:
        machines.close()


def ray_start(pair, machine, *options):
    """Start Ray on a machine; it runs until the machine stops it."""
    words = [RAY, "start", "--block", "--node-ip-address", ADDRESSES[machine], "--object-store-memory", MEMORY]
    return pair.start(machine, [*words, *options], **ENVIRONMENT | {"PYTHONPATH": str(ROOT)})


def start_export(pair):
    """Start the command beside the head."""
    settings = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    words = [sys.executable, export.__file__, "--run", pair.place, *settings, "--launcher", "ray"]
    words += ["--ray_address", HEAD, "--ray_timeout", TIMEOUT]
    return pair.start(0, words, **ENVIRONMENT | {"PYTHONPATH": str(ROOT)})


@pytest.mark.long
def test_a_cut_cable_ends_the_export_and_it_goes_on(pair, tmp_path):
    export.main(replace(export.Config(run=pair.disks[0], output=tmp_path / "alone"), **SETTINGS))
    head = ["--head", "--port", 6379, "--num-cpus", 0, "--include-dashboard", "false", "--temp-dir", pair.place / "ray"]
    ray_start(pair, 0, *head)
    pair.wait_for_port(0, 6379)
    ray_start(pair, 1, "--address", HEAD, "--num-cpus", 1)
    driver = start_export(pair)
    finished = pair.disks[0] / "soft_labels.partial/data"
    while len(list(finished.glob("*.parquet"))) < 3:
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.01)
    pair.cut()
    log, _ = driver.communicate(timeout=120)
    assert driver.returncode == 2 and f"No shard has been finished within {TIMEOUT} s" in log, log
    kept = {path.name: path.stat().st_mtime_ns for path in finished.glob("*.parquet")}
    assert 3 <= len(kept) < len(list((tmp_path / "alone/data").glob("*.parquet")))

    pair.mend()
    ray_start(pair, 1, "--address", HEAD, "--num-cpus", 1)  # the head has given up the old one
    log, _ = (driver := start_export(pair)).communicate(timeout=240)
    assert driver.returncode == 0, log
    assert content(pair.disks[0] / "soft_labels") == content(tmp_path / "alone")
    times = {path.name: path.stat().st_mtime_ns for path in (pair.disks[0] / "soft_labels/data").glob("*.parquet")}
    assert kept.items() <= times.items()  # nothing finished was written again
    assert not list(pair.disks[1].glob("soft_labels*"))
