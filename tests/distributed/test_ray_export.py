"""Labels and embeddings on a real Ray cluster on this machine: drivers and nodes are killed, the bytes stay."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from export_run import ITEMS, MEMORY, SETTINGS, SIZES, content, make_network, make_run
from local_cluster import ENVIRONMENT, local_cluster, wait_for_actor, wait_for_files

from distill import export_soft_labels as export
from distill.runtime import artifacts


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
    with local_cluster() as running:
        yield running


def start(run, cluster, output, *words):
    """Start the command on the cluster."""
    script = str(Path(export.__file__))
    settings = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, script, "--run", str(run), "--output", str(output), *settings, "--launcher", "ray"]
    address = [] if "local" in words else ["--ray_address", cluster.address]
    return subprocess.Popen(
        [*command, *address, *words],
        env=os.environ | ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_driver_and_a_node_that_die_cost_only_their_shards(run, whole, cluster, tmp_path):
    """The first driver is killed; under the second one a node dies, and another goes on."""
    output = tmp_path / "labels"
    doomed, _ = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(2)]
    shards = len(content(whole)) - 2
    assert shards > 20

    driver = start(run, cluster, output, "--ray_actors", "1")
    wait_for_files(driver, tmp_path / "labels.partial" / "parts", "*.json", 3)
    driver.kill()
    driver.communicate()
    data = output.with_name("labels.partial") / "data"
    kept = {path.name: path.stat().st_mtime_ns for path in data.glob("*.parquet")}
    assert 3 <= len(kept) < shards - 8

    driver = start(run, cluster, output)  # as many actors as fit: two
    wait_for_actor(driver, doomed, "ShardLabeller")
    cluster.remove_node(doomed, allow_graceful=False)
    _, log = driver.communicate(timeout=400)
    assert driver.returncode == 0, log
    assert "Traceback" not in log  # whether the dead node had a shard in hand is a matter of moments
    assert content(output) == content(whole)
    assert artifacts.read(output, "soft_labels").fingerprint == artifacts.read(whole, "soft_labels").fingerprint
    times = {path.name: path.stat().st_mtime_ns for path in (output / "data").glob("*.parquet")}
    assert kept.items() <= times.items()  # nothing finished was written again
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


@pytest.mark.parametrize(
    "mix",
    [{"item_model": 1.0}, pytest.param({"transitions": 1.0}, marks=pytest.mark.long)],
    ids=lambda mix: next(iter(mix)),
)
def test_exact_labels_of_all_items_are_those_of_one_process(run, cluster, tmp_path, mix):
    """The teacher scores all items: a network over items, or counts; no language model is read."""
    network = run / "baselines" / "sasrec"
    if "item_model" in mix and not network.exists():
        make_network(run)
    named = {"item_model": network} if "item_model" in mix else {}
    (tmp_path / "alone").mkdir()
    export.main(replace(export.Config(run=run, output=tmp_path / "alone" / "labels", mix=mix, **named), **SETTINGS))
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(2)]
    words = [word for name, path in named.items() for word in (f"--{name}", str(path))]
    driver = start(run, cluster, tmp_path / "labels", "--mix", json.dumps(mix), *words)
    _, log = driver.communicate(timeout=400)
    for node in nodes:
        cluster.remove_node(node)
    assert driver.returncode == 0, log
    assert content(tmp_path / "labels") == content(tmp_path / "alone" / "labels")
    assert len(list((tmp_path / "labels" / "data").glob("*.parquet"))) > 20
    index = json.loads((tmp_path / "labels" / "index.json").read_text())
    assert index["mix"] == mix


@pytest.mark.vllm
def test_an_actor_with_vllm_labels_as_one_process(cluster, tmp_path):
    """On a processor vLLM runs in the actor's own process."""
    make_run(tmp_path, SIZES | {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1})
    words = ["--engine", "vllm", "--limit", "60", "--kv_cache_gb", "0.1"]
    node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    for output, further in (("alone", ["--launcher", "local"]), ("ray", [])):
        driver = start(tmp_path, cluster, tmp_path / output, *words, *further)
        _, log = driver.communicate(timeout=400)
        assert driver.returncode == 0, log
    cluster.remove_node(node)
    assert content(tmp_path / "ray") == content(tmp_path / "alone")
    assert len(list((tmp_path / "ray" / "data").glob("*.parquet"))) >= 3
    assert json.loads((tmp_path / "ray" / "index.json").read_text())["labeller"]["engine"] == "vllm"


def test_what_a_node_cannot_do_is_told_in_one_message(run, cluster, tmp_path):
    """Actors that need more than any node has."""
    driver = start(run, cluster, tmp_path / "labels", "--ray_cpus", "64", "--ray_timeout", "3")
    _, log = driver.communicate(timeout=120)
    assert driver.returncode == 2, log
    assert "An actor needs 64 CPUs" in log and "Traceback" not in log


def embed(run, output, *words):
    """Start the command that embeds the items by the teacher's hidden states."""
    script = str(Path(__file__).parents[2] / "scripts" / "embed_items.py")
    command = [sys.executable, script, "--run", str(run), "--output", str(output), "--embedder", "hf"]
    settings = ["--model", str(run / "teacher"), "--shard_rows", "2", "--batch_size", "2"]
    return subprocess.Popen(
        [*command, *settings, *words], env=os.environ | ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.long
def test_items_are_embedded_as_by_one_process(run, cluster, tmp_path):
    """The first driver is killed when it has a shard; under the second one a node dies: the bytes stay."""
    alone = embed(run, tmp_path / "alone")
    _, log = alone.communicate(timeout=400)
    assert alone.returncode == 0, log
    address = ["--launcher", "ray", "--ray_address", cluster.address]
    doomed, other = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(2)]
    driver = embed(run, tmp_path / "ray", *address, "--ray_actors", "1")
    shards = tmp_path / "ray.partial" / "shards"
    wait_for_files(driver, shards, "*.npy", 1)
    driver.kill()
    driver.communicate()
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("*.npy")}
    assert 1 <= len(kept) < ITEMS / 2 - 5

    driver = embed(run, tmp_path / "ray", *address)  # as many actors as fit: two
    wait_for_actor(driver, doomed, "ShardEmbedder")
    cluster.remove_node(doomed, allow_graceful=False)
    _, log = driver.communicate(timeout=400)
    cluster.remove_node(other)
    assert driver.returncode == 0, log
    assert "Traceback" not in log  # whether the dead node had a shard in hand is a matter of moments
    assert content(tmp_path / "ray") == content(tmp_path / "alone")
    fingerprints = [artifacts.read(tmp_path / name, "embeddings").fingerprint for name in ("ray", "alone")]
    assert fingerprints[0] == fingerprints[1]
