"""A Ray cluster on this machine whose nodes the tests add and kill."""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from export_run import ENVIRONMENT, MEMORY

ENVIRONMENT = ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2])}


@contextlib.contextmanager
def local_cluster():
    """Give a head without processors for actors; nodes are added by the tests."""
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


def wait_for_actor(process, node, actor):
    """Wait until an actor on a node has loaded its model: the title of its process says what it does.

    Args:
        process: the driver, which must go on.
        node: of the cluster.
        actor: name of the actor's class.
    """
    (raylet,) = [running for kind, running in node.live_processes() if kind == "raylet"]
    titles = []
    while not any(actor in title and "__init__" not in title for title in titles):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
        titles = []
        for worker in psutil.Process(raylet.pid).children():
            with contextlib.suppress(psutil.Error):
                titles.append(" ".join(worker.cmdline()))


def wait_for_files(process, folder, pattern, count):
    """Wait until a process has written a number of files below a folder."""
    while len(list(folder.rglob(pattern))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
