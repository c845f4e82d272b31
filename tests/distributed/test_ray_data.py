"""Data preparation on a real Ray cluster on this machine: the files of one process, also where nodes die."""

import contextlib
import errno
import json
import socket
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_run import MEMORY
from hypothesis import HealthCheck, given, settings
from interaction_logs import LOGS, cut_small, outcome, plain_outcome, write_config
from local_cluster import local_cluster

from distill.data import dataset
from distill.data.config import PrepareSettings
from distill.data.out_of_core import ray_chunks
from distill.data.out_of_core.prepare import _prepare
from distill.data.out_of_core.ray_chunks import RayChunks
from distill.data.sources import table
from distill.runtime import ray_cluster, ray_tasks
from distill.runtime.errors import UserError
from scripts import prepare_data

TIMEOUT = 60.0


@pytest.fixture(scope="module")
def cluster():
    """A cluster whose head has no processors and one node that has one; this process is connected."""
    with local_cluster() as running:
        running.add_node(num_cpus=1, object_store_memory=MEMORY)
        with ray_cluster.connect(running.address):
            yield running


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    cut_small(monkeypatch, ray_chunks, chunk_rows=16, block_rows=16, csv_bytes=400)


@contextlib.contextmanager
def prepared(config, kind=RayChunks):
    """What `prepare_on_ray` gives, on the cluster of the module."""
    with ray_tasks.cluster_errors():
        yield _prepare(config, kind(TIMEOUT))


def ray_outcome(config, kind=RayChunks):
    return outcome(lambda folder: prepared(config, kind))


@given(log=LOGS)
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_same_bytes_or_refusals_as_the_plain_engine(cluster, log):
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder), log)
        assert ray_outcome(config) == plain_outcome(config)


def write_large(folder):
    """Write 6,000 interactions of 500 users; returns settings under which every step has work to do."""
    rng = np.random.default_rng(0)
    items = (rng.integers(0, 80, 6000) * rng.integers(0, 80, 6000)) % 80
    columns = {
        "user_id": [f"user {number}" for number in rng.integers(0, 500, 6000)],
        "item_id": [f"item {number}" for number in items],
        "timestamp": rng.integers(0, 4000, 6000),
        "rating": rng.integers(1, 6, 6000),
    }
    pq.write_table(pa.table(columns), folder / "interactions.parquet", row_group_size=500)
    return PrepareSettings(
        format="table", input=folder, min_rating=2.0, duplicates="first", k_core=5, item_core=40, short_users="drop",
        split="global_cut", withhold=0.05,
    )  # fmt: skip


@pytest.fixture
def large_pieces(monkeypatch):
    monkeypatch.setattr(ray_chunks, "CHUNK_ROWS", 800)
    monkeypatch.setattr(table, "PARQUET_BLOCK", 1000)
    monkeypatch.setattr(dataset, "ROW_GROUP", 100)


@pytest.mark.parametrize("many", [1, 100_000])
def test_whatever_size_of_blocks_ray_data_is_told_and_by_both_sorts(cluster, tmp_path, monkeypatch, large_pieces, many):
    import ray.data

    monkeypatch.setattr(ray_chunks, "MANY_PIECES", many)
    monkeypatch.setattr(ray.data.DataContext.get_current(), "target_max_block_size", 200)
    config = write_large(tmp_path)
    plain = plain_outcome(config)
    assert isinstance(plain, tuple)
    assert ray_outcome(config) == plain


def test_the_command_writes_the_data_set_of_the_plain_engine(cluster, tmp_path, large_pieces, monkeypatch):
    monkeypatch.setattr(ray_cluster, "connect", contextlib.nullcontext)  # this process is connected
    (tmp_path / "raw").mkdir()
    settings = vars(write_large(tmp_path / "raw"))
    config = prepare_data.Config(**settings, engine="ray", ray_address=cluster.address, output=tmp_path / "ray")
    alone = replace(config, engine="memory", ray_address=None, output=tmp_path / "memory")
    for each in (config, alone):
        prepare_data.main(each)
    files = [{path.name: path.read_bytes() for path in each.output.iterdir()} for each in (config, alone)]
    manifests = [json.loads(each.pop("manifest.json")) for each in files]
    assert files[0] == files[1] and len(files[0]) == 4
    for key in ("fingerprint", "files", "facts", "identity"):
        assert manifests[0][key] == manifests[1][key]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory", "raw", "ray"]


def test_what_workers_refuse_is_refused_with_the_words_of_the_plain_engine(cluster, tmp_path):
    rows = {"user_id": ["u"] * 9, "item_id": [*"abcabc", " ", "a", None], "timestamp": [*range(8), 8]}
    pq.write_table(pa.table(rows), tmp_path / "interactions.parquet", row_group_size=2)
    config = PrepareSettings(format="table", input=tmp_path)
    refusal = ray_outcome(config)
    assert refusal == plain_outcome(config)
    assert "interactions.parquet row 6: expected item id, got nothing" in refusal


def failing(error):
    """Make a function that raises an error; workers, which cannot import this module, get all of it."""

    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "timeout", "kind", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            TIMEOUT,
            UserError,
            "cannot go on: a disk of a node is full",
        ),
        (UserError("Mend it."), TIMEOUT, UserError, r"^Mend it\.$"),
        (ValueError("unexpected"), TIMEOUT, ValueError, "unexpected"),
        (UserError("never seen"), 1e-6, UserError, r"No task has been finished within 1e-06 s\..* have .*1 CPUs"),
    ],
)
def test_errors_of_workers(cluster, error, timeout, kind, message):
    with pytest.raises(kind, match=message), ray_tasks.cluster_errors():
        list(ray_tasks.call_on_cluster(failing(error), [()], timeout))


def test_a_worker_of_another_version_is_named():
    nothing, refusal = ray_tasks._call(failing(ValueError()), (("python", "2.7"),))
    assert nothing is None
    assert str(refusal).startswith(f"Node {socket.gethostname()} cannot work: it has python ")


@pytest.mark.parametrize("step", ["group_users", "write"])
def test_a_node_that_dies_costs_what_it_held(cluster, tmp_path, large_pieces, step):
    """It dies when two results of a step have come, or when the first chunk was written."""
    config = write_large(tmp_path)
    plain = plain_outcome(config)
    assert isinstance(plain, tuple)
    doomed = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    deaths = []

    def die():
        if not deaths:
            deaths.append(step)
            cluster.remove_node(doomed, allow_graceful=False)

    class Broken(RayChunks):
        def _call(self, function, calls):
            name = getattr(function, "func", function).__name__
            for number, result in enumerate(super()._call(function, calls)):
                if name == step and number == 2:
                    die()
                yield result

        def with_user_ids(self):
            for source in super().with_user_ids():
                yield source
                if step == "write":
                    die()

    assert ray_outcome(config, Broken) == plain
    assert deaths == [step]
