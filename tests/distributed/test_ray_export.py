"""Labels and embeddings on a real Ray cluster on this machine: drivers and a node are killed, the bytes stay."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from export_run import ENVIRONMENT, MEMORY, SETTINGS, content, make_run

from distill import export_soft_labels as export
from distill.runtime import artifacts

ENVIRONMENT = ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder: data set, semantic IDs and teacher."""
    root = tmp_path_factory.mktemp("run")
    make_run(root)
    return root


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """The set that this process writes alone."""
    output = tmp_path_factory.mktemp("whole") / "labels"
    export.main(replace(export.Config(run=run, output=output), **SETTINGS))
    return output


@pytest.fixture(scope="module")
def cluster():
    """A head without processors for actors; nodes are added by the tests."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray")  # short: paths of sockets may have 107 characters
    files = Path(folder) / "ray"  # where Ray, told RAY_TMPDIR, writes this cluster's address: it does not make it
    files.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (ENVIRONMENT | {"RAY_TMPDIR": folder}).items():
            patch.setenv(name, value)
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(files), "object_store_memory": MEMORY}
        running = Cluster(initialize_head=True, head_node_args=head)
        yield running
        running.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def start(run, cluster, output, *words):
    """Start the command on the cluster."""
    script = str(Path(export.__file__))
    settings = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, script, "--run", str(run), "--output", str(output), *settings, "--launcher", "ray"]
    address = ["--ray_address", cluster.address]
    return subprocess.Popen(
        [*command, *address, *words],
        env=os.environ | ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_shards(process, output, count):
    """Wait until a number of shards is finished, and return their files."""
    records = output.with_name(output.name + ".partial") / "parts"
    while len(list(records.glob("*.json"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return sorted(path.stem for path in records.glob("*.json"))


def wait_for_actor(process, node):
    """Wait until an actor on a node has loaded its engine: the title of its process says what it does."""
    (raylet,) = [running for kind, running in node.live_processes() if kind == "raylet"]
    titles = []
    while not any("ShardLabeller" in title and "__init__" not in title for title in titles):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
        titles = []
        for worker in psutil.Process(raylet.pid).children():
            with contextlib.suppress(psutil.Error):
                titles.append(" ".join(worker.cmdline()))


def test_a_driver_and_a_node_that_die_cost_only_their_shards(run, whole, cluster, tmp_path):
    """The first driver is killed; under the second one a node dies, and another goes on."""
    output = tmp_path / "labels"
    doomed, _ = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(2)]
    shards = len(content(whole)) - 2
    assert shards > 20

    driver = start(run, cluster, output, "--ray_actors", "1")
    wait_for_shards(driver, output, 3)
    driver.kill()
    driver.communicate()
    data = output.with_name("labels.partial") / "data"
    kept = {path.name: path.stat().st_mtime_ns for path in data.glob("*.parquet")}
    assert 3 <= len(kept) < shards - 8

    driver = start(run, cluster, output)  # as many actors as fit: two
    wait_for_actor(driver, doomed)
    cluster.remove_node(doomed, allow_graceful=False)
    _, log = driver.communicate(timeout=200)
    assert driver.returncode == 0, log
    assert "shards are done again" in log and "Traceback" not in log
    assert content(output) == content(whole)
    assert artifacts.read(output, "soft_labels").fingerprint == artifacts.read(whole, "soft_labels").fingerprint
    times = {path.name: path.stat().st_mtime_ns for path in (output / "data").glob("*.parquet")}
    assert kept.items() <= times.items()  # nothing finished was written again
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


def test_what_a_node_cannot_do_is_told_in_one_message(run, cluster, tmp_path):
    """Actors that need more than any node has."""
    driver = start(run, cluster, tmp_path / "labels", "--ray_cpus", "64", "--ray_timeout", "3")
    _, log = driver.communicate(timeout=60)
    assert driver.returncode == 2, log
    assert "An actor needs 64 CPUs" in log and "Traceback" not in log


def embed(run, output, *words):
    """Start the command that embeds the items by the teacher's hidden states."""
    script = str(Path(__file__).parents[2] / "scripts" / "embed_items.py")
    command = [sys.executable, script, "--run", str(run), "--output", str(output), "--embedder", "hf"]
    settings = ["--model", str(run / "teacher"), "--shard_rows", "6", "--batch_size", "4"]
    return subprocess.Popen(
        [*command, *settings, *words], env=os.environ | ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_items_are_embedded_as_by_one_process(run, cluster, tmp_path):
    """The first driver is killed when it has a shard, the second goes on: the bytes are those of one process."""
    alone = embed(run, tmp_path / "alone")
    _, log = alone.communicate(timeout=100)
    assert alone.returncode == 0, log
    address = ["--launcher", "ray", "--ray_address", cluster.address, "--ray_actors", "1"]
    node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    driver = embed(run, tmp_path / "ray", *address)
    shards = tmp_path / "ray.partial" / "shards"
    while not list(shards.glob("*.npy")):
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.002)
    driver.kill()
    driver.communicate()
    driver = embed(run, tmp_path / "ray", *address)
    _, log = driver.communicate(timeout=100)
    assert driver.returncode == 0, log
    assert content(tmp_path / "ray") == content(tmp_path / "alone")
    fingerprints = [artifacts.read(tmp_path / name, "embeddings").fingerprint for name in ("ray", "alone")]
    assert fingerprints[0] == fingerprints[1]
    cluster.remove_node(node)
