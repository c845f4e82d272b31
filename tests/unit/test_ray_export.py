"""The parts of the export on Ray that need no cluster: settings, actors, messages (tests/distributed has a cluster)."""

import errno
import json
import shlex
import socket
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from distill.data.examples import TargetRanges
from distill.labels.config import Config, check
from distill.labels.exporter import Exporter
from distill.labels.labeller import LabelRequest, Labels
from distill.labels.ray_export import NO_SHARD, RayExporter, ReportedLabeller, ShardLabeller
from distill.labels.store import LabelStore
from distill.runtime import checksums, ray_cluster
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from distill.runtime.ray_actors import actors_of_node
from distill.runtime.ray_settings import parse_actors
from distill.semantic_ids import ray_embed
from distill.semantic_ids.ids import SemanticIDs

LEVELS, SIZE, ITEMS = 2, 4, 10
IDS = SemanticIDs(None, [], np.random.default_rng(0).integers(0, SIZE, (ITEMS, LEVELS)), SIZE)
SETTINGS = Config(shard_rows=4, keep=3, width=3)
REQUEST = LabelRequest(3, 3)


class Hash:
    """A labeller whose labels depend on the example alone; it fails on request."""

    def __init__(self, error=None):
        self.error, self.counted = error, {"tokens": 100}

    def label(self, examples, request, progress):
        if self.error:
            raise self.error
        rows = [np.random.default_rng([u, p]) for u, p in zip(examples.users, examples.positions, strict=True)]
        others = [rng.permutation(np.delete(np.arange(ITEMS), t))[:2] for rng, t in zip(rows, examples.targets)]  # noqa: B905
        candidates = np.concatenate([examples.targets[:, None], np.stack(others)], axis=1)
        log_probs = np.log(np.stack([rng.dirichlet(np.ones(SIZE), LEVELS) for rng in rows])).astype(np.float32)
        self.counted["tokens"] += 7 * len(examples)
        progress(len(examples))
        return Labels(candidates, np.tile(-np.arange(3, dtype=np.float32), (len(examples), 1)), log_probs)

    def log_prob(self, examples, items):
        raise NotImplementedError

    def facts(self):
        return {"engine": "hash"}

    def counters(self):
        return self.counted


def targets():
    """Three targets of each of six users, after one item."""
    users = np.arange(6)
    values = (users[:, None] + np.arange(4)).ravel() % ITEMS
    return TargetRanges(values, np.arange(7) * 4, users, np.ones(6, np.int64), 3 + 3 * users, 1)


def exporter(error=None):
    return Exporter(Hash(error), targets(), IDS, REQUEST, SETTINGS, "train", {})


class LocalActors(RayExporter):
    """The driver with an actor that is called in this process; shards in `lost` come back in the second pass only."""

    def _results(self, numbers):
        actor = ShardLabeller(self.open_exporter, ray_cluster.versions())
        for number in numbers:
            if number in LOST:
                LOST.remove(number)
            else:
                yield from actor(pa.table({"shard": [number]})).to_pylist()


LOST: list[int] = []


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.setattr(ray_cluster, "connect", lambda _: nullcontext())
    monkeypatch.setattr(ray_cluster, "resources_of_nodes", lambda: [{"CPU": 2.0}])
    LOST.clear()


def driver(open_exporter=exporter):
    return LocalActors(ReportedLabeller(), targets(), IDS, REQUEST, SETTINGS, "train", {}, SETTINGS, 1, open_exporter)


def job(output):
    return ArtifactJob("soft_labels", SETTINGS, output, shared=True)


def content(folder):
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "manifest.json"}


@pytest.mark.parametrize("lost", [[], [0, 3], [2, 2]])  # in one pass, and in two
def test_the_set_is_that_of_one_process(tmp_path, lost, caplog):
    assert exporter().export(job(tmp_path / "alone"))
    LOST.extend(lost)
    assert driver().export(job(tmp_path / "ray"))
    assert content(tmp_path / "ray") == content(tmp_path / "alone")
    assert LabelStore.open(tmp_path / "ray").rows == 18 and not LOST
    told = [record.message for record in caplog.records if "done again" in record.message]
    assert [int(message.split()[-1]) for message in told] == {0: [], 2: [2], 1: [1, 1]}[len(set(lost))]


def test_a_driver_that_only_has_to_finish_asks_for_the_facts(tmp_path, monkeypatch):
    """All shards are there, the index is not: one actor is started, which labels nothing."""

    def killed(*_):
        raise KeyboardInterrupt

    assert exporter().export(job(tmp_path / "alone"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Exporter, "complete", killed)
        driver().export(job(tmp_path / "ray"))
    assert driver(partial(exporter, RuntimeError("labels again"))).export(job(tmp_path / "ray"))
    assert content(tmp_path / "ray") == content(tmp_path / "alone")


def test_a_result_is_a_row_of_typed_columns():
    actor = ShardLabeller(exporter, ray_cluster.versions())
    table = actor(pa.table({"shard": [1]}))
    assert table.schema == ShardLabeller.result
    (row,) = table.to_pylist()
    content, quality = exporter().label_shard(1, lambda _: None)
    assert row["content"] == bytes(content) and json.loads(row["quality"]) == quality
    assert (row["shard"], row["tokens"], row["problem"], row["traceback"]) == (1, 3 * 7, None, None)
    (row,) = actor(pa.table({"shard": [NO_SHARD]})).to_pylist()
    assert row["content"] is None and json.loads(row["facts"]) == {"engine": "hash"} and row["tokens"] == 0


def test_problems_of_a_node_are_told_with_its_name(tmp_path):
    def no_teacher():
        raise UserError("No teacher at /models/teacher.")

    with pytest.raises(UserError) as problem:
        driver(no_teacher).export(job(tmp_path / "labels"))
    assert f"Node {socket.gethostname()} cannot label: No teacher at /models/teacher. Finished shards" in str(
        problem.value
    )
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match="A disk is full there"):
        driver(partial(exporter, full)).export(job(tmp_path / "labels"))
    with pytest.raises(RuntimeError, match=r"(?s)failed:.*in label\n.*ZeroDivisionError: weights"):
        driver(partial(exporter, ZeroDivisionError("weights"))).export(job(tmp_path / "labels"))


def test_other_versions_on_a_node_are_refused(tmp_path, monkeypatch):
    expected = ray_cluster.versions()
    assert expected["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}" and "+" not in expected["torch"]
    monkeypatch.setattr(ray_cluster, "versions", lambda: expected | {"torch": "1.0", "code of lohrec-distill": "0"})
    (row,) = ShardLabeller(exporter, expected)(pa.table({"shard": [0]})).to_pylist()
    assert f"it has torch 1.0, not {expected['torch']}, code of lohrec-distill 0, not " in row["problem"]


def test_the_codes_fingerprint_follows_the_code(tmp_path, monkeypatch):
    for package in checksums.SOURCES:
        (tmp_path / package).mkdir()
    module = tmp_path / "distill" / "runtime" / "checksums.py"
    module.parent.mkdir()
    prints = []
    monkeypatch.setattr(checksums, "__file__", str(module))
    for text in ("a", "b", "a"):
        module.write_text(text)
        prints.append(checksums.code_fingerprint())
    assert prints[0] == prints[2] != prints[1]


def test_engines_that_differ_are_refused():
    labeller = ReportedLabeller()
    labeller.add({"runner": "V1"}, 5)
    labeller.add({"runner": "V1"}, 6)
    assert labeller.facts() == {"runner": "V1"} and labeller.counters() == {"tokens": 11}
    with pytest.raises(UserError, match="engines differ"):
        labeller.add({"runner": "V2"}, 1)


def test_a_full_disk_of_the_driver_keeps_what_is_finished(tmp_path, monkeypatch):
    real, written = Path.write_bytes, []

    def write(path, data):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return real(path, data)

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"is full .* 2 of 6 shards are finished and kept"),
    ):
        patch.setattr(Path, "write_bytes", write)
        driver().export(job(tmp_path / "labels"))
    assert driver().export(job(tmp_path / "labels"))


def test_a_cluster_on_which_nothing_gets_finished(tmp_path):
    LOST.extend([*range(6)] * 3)
    with pytest.raises(
        UserError, match=r"within 1800 s or 3 passes. An actor needs 1 CPUs and 0 GPUs; the nodes have 2 CPUs and 0 "
    ):
        driver().export(job(tmp_path / "labels"))


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "count"),
    [
        ({"CPU": 8.0}, 1.0, 0.0, 8),
        ({"CPU": 8.0, "GPU": 4.0}, 1.0, 1.0, 4),
        ({"CPU": 3.0, "GPU": 4.0}, 1.0, 0.5, 3),
        ({"CPU": 8.0}, 1.0, 1.0, 0),
        ({"CPU": 2.0}, 0.5, 0.0, 4),
        ({}, 0.0, 0.0, 1),
    ],
)
def test_actors_that_fit_on_a_node(node, cpus, gpus, count):
    assert actors_of_node(node, cpus, gpus) == count


def test_actors_by_words():
    assert [parse_actors(text) for text in (None, "4", "1:8")] == [None, (4, 4), (1, 8)]
    for text in ("0", "8:1", "many", "1:2:3", ""):
        with pytest.raises(UserError, match="expected N or MIN:MAX"):
            parse_actors(text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ray_actors": "2"}, "--ray_actors is for --launcher ray"),
        ({"ray_labels": {"a": "b"}}, "--ray_labels is for --launcher ray"),
        ({"launcher": "ray", "shard": "0/2"}, "without --shard"),
    ],
)
def test_settings_that_contradict(changes, words):
    with pytest.raises(UserError, match=words):
        check(replace(SETTINGS, **changes))
    check(replace(SETTINGS, launcher="ray", ray_actors="1:4"))


def test_ray_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray Data cannot be imported .*\[ray\]"):
        ray_cluster.import_ray()


def test_addresses(monkeypatch):
    for address in ("ray://head:10001", "head", "head:", ":6379", "head:port"):
        with pytest.raises(UserError, match="expected HOST:PORT"):
            ray_cluster.check_address(address)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        ray_cluster.check_address(address)
    with pytest.raises(UserError, match=f"No Ray cluster answers at {address}"):
        ray_cluster.check_address(address)
    for address in ("auto", "local"):
        ray_cluster.check_address(address)


def test_joining_has_a_deadline():
    with pytest.raises(TimeoutError, match="no answer within 1 s"), ray_cluster.deadline(1):
        socket.create_server(("127.0.0.1", 0)).accept()
    with ray_cluster.deadline(1):
        pass


def test_the_examples_for_clusters_are_well_formed():
    """The SLURM script parses; the options that the examples give exist."""
    folder = Path(__file__).parents[2] / "configs" / "ray"
    assert subprocess.run(["bash", "-n", folder / "slurm.sh"], check=False).returncode == 0
    job = yaml.safe_load((folder / "rayjob.yaml").read_text())
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["python", "/app/distill/export_soft_labels.py"]
    options = {name: value for name, value in zip(words[2::2], words[3::2], strict=True)}
    assert options["--launcher"] == "ray" and {name[2:] for name in options} <= {"config", *Config.__dataclass_fields__}
    check(replace(SETTINGS, launcher="ray", ray_actors=options["--ray_actors"], ray_gpus=float(options["--ray_gpus"])))
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == next(
        line.removeprefix("ray==") for line in (folder.parents[1] / "constraints.txt").read_text().splitlines()
        if line.startswith("ray==")
    )  # fmt: skip
    assert (
        cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] == "/runs"
    )


def test_a_port_that_is_no_cluster(monkeypatch):
    monkeypatch.setattr(ray_cluster, "JOIN_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=f"What listens at {address} is no head of a Ray cluster"):
            ray_cluster.check_health(address)


def test_a_node_with_another_model_embeds_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    same = checksums.fingerprint(tmp_path)
    ray_embed.check_model(tmp_path, same)
    (tmp_path / "config.json").write_text("{ }")
    with pytest.raises(UserError, match="holds another model there"):
        ray_embed.check_model(tmp_path, same)
    with pytest.raises(UserError, match="is not there"):
        ray_embed.check_model(tmp_path / "missing", same)


def test_an_actor_embeds_the_texts_of_a_shard():
    def encode(texts):
        return np.array([[len(text), 1.5] for text in texts], np.float32)

    actor = ray_embed.ShardEmbedder(lambda: encode, ray_cluster.versions())
    (row,) = actor(pa.table({"shard": [3], "texts": [["ab", "c"]]})).to_pylist()
    assert row["shard"] == 3 and row["problem"] is None
    np.testing.assert_array_equal(
        np.frombuffer(row["vectors"], np.float32).reshape(-1, row["dim"]), [[2, 1.5], [1, 1.5]]
    )
