"""An evaluation on a real Ray cluster on this machine: a driver and a node are killed, figures and lists stay."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli.test_evaluate import make_run
from export_run import MEMORY, make_teacher
from local_cluster import ENVIRONMENT, local_cluster, wait_for_actor, wait_for_files

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"
LISTS = ("lists.parquet", "unconstrained.parquet")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder: data set, semantic IDs, embeddings, teacher, a student, and two networks over items."""
    root = tmp_path_factory.mktemp("run")
    make_run(root, users=160)
    make_teacher(root)
    return root


def evaluate(run, output, *words):
    """Start the command."""
    settings = ["--batch_size", "8", "--transitions.window", "2", "--graph", "false", "--exact_users", "3"]
    command = [sys.executable, str(SCRIPT), "--run", str(run), "--output", str(output), "--device", "cpu"]
    return subprocess.Popen(
        [*command, *settings, "--mixture_users", "50", "--widths", "[4]", "--width_users", "20", *words],
        env=os.environ | ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def figures(folder):
    """Rows of the table without times."""
    rows = json.loads((folder / "metrics.json").read_text())
    return [{name: value for name, value in row.items() if name != "users_per_s"} for row in rows]


@pytest.mark.long
def test_a_driver_and_a_node_that_die_change_no_figure(run, tmp_path):
    alone = evaluate(run, tmp_path / "alone")
    _, log = alone.communicate(timeout=400)
    assert alone.returncode == 0, log
    with local_cluster() as cluster:
        doomed, _ = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(2)]
        on_ray = ["--launcher", "ray", "--ray_address", cluster.address, "--shard_rows", "9"]  # of 16, two batches

        driver = evaluate(run, tmp_path / "ray", *on_ray, "--ray_actors", "1")
        shards = tmp_path / "ray.partial" / "ranked"
        wait_for_files(driver, shards, "*.npz", 3)
        driver.kill()
        driver.communicate()
        kept = {path: path.stat().st_mtime_ns for path in shards.rglob("*.npz")}
        assert 3 <= len(kept) < 30

        driver = evaluate(run, tmp_path / "ray", *on_ray)  # as many actors as fit: two
        wait_for_actor(driver, doomed, "ShardRanker")
        cluster.remove_node(doomed, allow_graceful=False)
        # of 48: 10 of each system, 4 of validation, 2 of another width of two systems
        wait_for_files(driver, shards, "*.npz", 35)
        times = {path: path.stat().st_mtime_ns for path in kept}
        _, log = driver.communicate(timeout=400)
    assert driver.returncode == 0, log
    assert "Traceback" not in log  # whether the dead node had a shard in hand is a matter of moments
    assert times == kept  # nothing finished was written again
    assert figures(tmp_path / "ray") == figures(tmp_path / "alone")
    for name in LISTS:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    systems = {"gru4rec", "sasrec-list", "teacher", "teacher+transitions", "teacher+counter+content", "tiger"}
    assert systems <= {row["system"] for row in figures(tmp_path / "ray")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "ray"]
