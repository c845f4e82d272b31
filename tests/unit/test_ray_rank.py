"""Ranking in shards without a cluster: the actor is called directly (tests/distributed has a cluster)."""

import io
import socket
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from faults.damage import damage
from unit.test_counting import make
from unit.test_evaluation import N_ITEMS, Recorder, evaluation

from distill.evaluation import ray_rank
from distill.evaluation.inputs import Inputs
from distill.evaluation.rank_shards import RankedShards, SystemRanker
from distill.evaluation.ray_rank import ShardRanker, open_ranker_on_node, rank_on_ray, rank_shards, shard_tasks
from distill.runtime import artifacts, ray_actors, ray_cluster
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from distill.runtime.ray_settings import RaySettings

BATCH, WIDTH = 3, 10


@dataclass(frozen=True)
class Nothing:
    """No settings."""


class Hash(Recorder):
    """A system whose lists depend on a whole batch, as rounding may."""

    def __init__(self, name, kind="student", needs_trie=False):
        super().__init__()
        self.name, self.kind, self.needs_trie = name, kind, needs_trie

    def rank(self, histories, beam_width, exclude_bought, constrained):
        rng = np.random.default_rng([len(self.name), constrained, *np.maximum(histories, 0).ravel()])
        scores = rng.normal(size=(len(histories), N_ITEMS)).astype(np.float32)
        items = np.argsort(-scores, axis=1)[:, :beam_width]
        return items, np.take_along_axis(scores, items, axis=1)


SYSTEMS = {system.name: system for system in (Hash("a"), Hash("needs", needs_trie=True), Hash("sasrec", "baseline"))}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Users with histories of five lengths."""
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(N_ITEMS)[: 4 + number % 5] for number in range(23)]
    return make(tmp_path_factory.mktemp("shop"), sequences, n_items=N_ITEMS)


def protocol(shop):
    return evaluation(shop, batch_size=BATCH, graph=False, content=False, width=WIDTH, mixture_users=11, exact_users=0)


def ranked_shards(shop, folder, shard_rows=4):
    parts = {name: protocol(shop).parts_of(is_mixed=name == "a") for name in SYSTEMS}
    return RankedShards(folder, parts, BATCH, shard_rows)


def ranker(shop, load=SYSTEMS.__getitem__):
    return SystemRanker(shop, load, WIDTH, True, BATCH)


class Pool(ray_actors.ActorPool):
    """One actor in this process; tasks in LOST come back in the next pass only."""

    def results(self, actor, arguments, tasks):
        running = actor(*arguments)
        for task in tasks:
            RANKED.append(task["shard"])
            if task["shard"] in LOST:
                LOST.remove(task["shard"])
            else:
                yield from running(pa.Table.from_pylist([task])).to_pylist()


LOST: list[int] = []
RANKED: list[int] = []


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.setattr(ray_rank.ray_actors, "ActorPool", Pool)
    monkeypatch.setattr(ray_cluster, "connect", lambda _: nullcontext())
    LOST.clear()
    RANKED.clear()


def rank(shards, open_ranker):
    rank_shards(shards, "test", open_ranker, RaySettings(launcher="ray"), 0, lambda _: None)


@pytest.mark.parametrize("shard_rows", [1, 4, 100])
def test_shards_hold_the_lists_of_one_process(shop, tmp_path, shard_rows):
    alone, shards = protocol(shop), ranked_shards(shop, tmp_path, shard_rows)
    assert shards.shard_rows == {1: 3, 4: 6, 100: 102}[shard_rows]
    LOST.extend([0, 1][: len(shards.shards()) - 1])
    rank(shards, partial(ranker, shop))
    for name, system in SYSTEMS.items():
        parts = [("evaluated", True)] + [("validation", True)] * (name == "a") + [("evaluated", False)] * (name == "a")
        for part, constrained in parts:
            result, expected = shards.read(name, part, constrained), alone.rank(system, part, constrained)
            np.testing.assert_array_equal(result.items, expected.items)
            assert result.items.dtype == expected.items.dtype and result.seconds >= 0
            if constrained:
                np.testing.assert_array_equal(result.scores, expected.scores)
    assert shards.read("needs", "evaluated", constrained=False).items.shape == (23, 0)  # never searched so


def test_the_table_is_that_of_one_process(shop, tmp_path):
    systems = [SYSTEMS["a"], SYSTEMS["sasrec"]]
    expected = protocol(shop).run(["popularity"], systems, None)
    shards = ranked_shards(shop, tmp_path)
    rank(shards, partial(ranker, shop))

    class Untouched(Hash):
        def rank(self, *_):
            raise AssertionError("actors rank")

    untouched = [Untouched("a"), Untouched("sasrec", "baseline")]
    table = protocol(shop).run(["popularity"], untouched, None, shards)
    assert [row | {"users_per_s": 0} for row in table.rows] == [row | {"users_per_s": 0} for row in expected.rows]
    for name, lists in (expected.lists | expected.unconstrained).items():
        np.testing.assert_array_equal((table.lists | table.unconstrained)[name], lists)


def test_a_killed_driver_goes_on_from_the_files(shop, tmp_path):
    shards = ranked_shards(shop, tmp_path)
    rank(shards, partial(ranker, shop))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.npz")}
    assert len(files) == len(shards.shards()) == 4 * len(SYSTEMS) + 2
    rank(shards, partial(ranker, shop, None))
    (tmp_path / "needs" / "evaluated-6-12-by-3.npz").unlink()
    RANKED.clear()
    rank(shards, partial(ranker, shop))
    (again,) = RANKED
    assert shards.shards()[again].system == "needs" and shards.shards()[again].start == 6
    assert [path for path in tmp_path.rglob("*") if path.suffix == ".tmp"] == []
    for path, content in files.items():
        with np.load(path) as after, np.load(io.BytesIO(content)) as before:
            assert all(np.array_equal(after[name], before[name]) for name in before.files if name != "seconds")


@pytest.mark.parametrize("kind", ["cut", "flipped", "swapped"])
def test_a_damaged_shard_is_ranked_again_alone(shop, tmp_path, kind):
    shards = ranked_shards(shop, tmp_path)
    rank(shards, partial(ranker, shop))
    expected = shards.read("a").items
    shards.discard_damaged()
    assert all(shards.is_ranked(shard) for shard in shards.shards())
    damage(tmp_path / "a" / "evaluated-6-12-by-3.npz", tmp_path / "a" / "evaluated-12-18-by-3.npz", kind)
    shards.discard_damaged()
    damaged = [number for number, shard in enumerate(shards.shards()) if not shards.is_ranked(shard)]
    assert len(damaged) == 1 + (kind == "swapped")
    RANKED.clear()
    rank(shards, partial(ranker, shop))
    assert damaged == RANKED
    np.testing.assert_array_equal(shards.read("a").items, expected)


def test_without_a_trained_system_no_cluster_is_joined(shop, tmp_path, monkeypatch):
    def connect(_):
        raise AssertionError("joined")

    monkeypatch.setattr(ray_cluster, "connect", connect)
    inputs = Inputs(shop.artifact, None, None, None, [], [])
    ranked = rank_on_ray(protocol(shop), inputs, None, tmp_path, RaySettings(launcher="ray"), 0, 4)
    assert ranked.shards() == []


def test_what_a_node_opens_ranks_by_the_protocol(shop, tmp_path):
    """As in an actor: the data set is opened by its folder, systems are loaded by their names."""
    with ArtifactJob("student", Nothing(), tmp_path / "a").write() as folder:
        (folder / "weights").write_text("")
    inputs = Inputs(shop.artifact, None, None, None, [], [artifacts.read(tmp_path / "a", "student")])

    def load(artifact, dataset, ids):
        assert ids is None and dataset.n_items == N_ITEMS
        return SYSTEMS[artifact.folder.name]

    opened = open_ranker_on_node(inputs.with_absolute_folders(), load, WIDTH, True, BATCH, no_verify=False)
    shards = RankedShards(tmp_path / "ranked", {"a": {"evaluated": protocol(shop).examples}}, BATCH, 100)
    rank(shards, lambda: opened)
    expected = protocol(shop).rank(SYSTEMS["a"])
    np.testing.assert_array_equal(shards.read("a").items, expected.items)


def test_shards_of_another_batch_size_are_ranked_again(shop, tmp_path):
    rank(ranked_shards(shop, tmp_path), partial(ranker, shop))
    other = RankedShards(tmp_path, {"a": protocol(shop).parts_of(is_mixed=False)}, 2, 6)
    assert not any(other.is_ranked(shard) for shard in other.shards())


def test_one_system_is_held_at_a_time(shop, tmp_path):
    loaded = []

    def load(name):
        loaded.append(name)
        return SYSTEMS[name]

    rank(ranked_shards(shop, tmp_path), partial(ranker, shop, load))
    assert loaded == ["a", "needs", "sasrec"]


def test_a_result_is_a_row_of_typed_columns(shop, tmp_path):
    task = shard_tasks(ranked_shards(shop, tmp_path), "test")[0]
    table = ShardRanker(partial(ranker, shop), ray_cluster.versions())(pa.Table.from_pylist([task]))
    (row,) = table.to_pylist()
    assert table.schema == ShardRanker.result and row["shard"] == 0 and row["problem"] is row["traceback"] is None


def test_problems_of_a_node_end_the_evaluation_with_its_name(shop, tmp_path, monkeypatch):
    def missing():
        raise UserError("No student at /runs/tiger.")

    shards = ranked_shards(shop, tmp_path)
    with pytest.raises(UserError, match=f"Node {socket.gethostname()} cannot rank: No student at /runs/tiger."):
        rank(shards, missing)
    with pytest.raises(RuntimeError, match=r"(?s)failed:.*ZeroDivisionError: weights"):
        rank(shards, partial(ranker, shop, lambda _: (_ for _ in ()).throw(ZeroDivisionError("weights"))))
    expected = ray_cluster.versions()
    monkeypatch.setattr(ray_cluster, "versions", lambda: expected | {"torch": "1.0"})
    (row,) = ShardRanker(partial(ranker, shop), expected)(
        pa.Table.from_pylist([shard_tasks(shards, "test")[0]])
    ).to_pylist()
    assert "it has torch 1.0, not" in row["problem"]


def test_inputs_of_a_node_are_those_of_the_driver(shop, tmp_path):
    students = []
    for number, name in enumerate(("x", "y")):
        with ArtifactJob("student", Nothing(), tmp_path / name).write() as folder:
            (folder / "weights").write_text(str(number))
        students.append(artifacts.read(tmp_path / name, "student"))
    inputs = Inputs(shop.artifact, None, None, None, [], students).with_absolute_folders()
    inputs.check_on_node()
    for name in ("x", "y"):
        (tmp_path / name).rename(tmp_path / f"old-{name}")
    with pytest.raises(UserError, match=r"No student at .*/x"):
        inputs.check_on_node()
    (tmp_path / "old-y").rename(tmp_path / "x")
    with pytest.raises(UserError, match="/x is another student there"):
        inputs.check_on_node()
