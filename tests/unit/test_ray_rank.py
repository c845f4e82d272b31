"""Ranking in shards without a cluster: the actor is called directly (tests/distributed has a cluster)."""

import io
import socket
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from faults.damage import damage
from unit.test_counting import make
from unit.test_evaluation import N_ITEMS, Recorder, evaluation

from distill.data.dataset import PAD
from distill.evaluation import cold, ray_rank
from distill.evaluation.inputs import Inputs
from distill.evaluation.rank_shards import RankedShards
from distill.evaluation.ray_rank import ShardRanker, open_ranker_on_node, rank_on_ray, rank_shards, shard_tasks
from distill.evaluation.shard_work import SystemRanker
from distill.runtime import artifacts, ray_actors, ray_cluster
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.errors import UserError
from distill.runtime.ray_settings import RaySettings
from student.systems import MemoryMixture

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

    def search_whole_vocabulary(self, histories, beam_width):
        if self.needs_trie:
            return None
        return self.rank(histories, beam_width, True, True)[0] - 3  # some are invalid

    def score_candidates(self, histories, items):
        rng = np.random.default_rng([len(self.name), *np.maximum(histories, 0).ravel(), *np.maximum(items, 0).ravel()])
        return np.where(items == PAD, -np.inf, -rng.exponential(5, items.shape)).astype(np.float32)

    def ranking_scores(self, histories, items, exclude_bought):
        return self.score_candidates(histories, items)


SYSTEMS = {
    system.name: system for system in (Hash("a", "teacher"), Hash("needs", needs_trie=True), Hash("sasrec", "baseline"))
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Users with histories of five lengths; the test items of some, the last three of the catalogue, are cold."""
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(N_ITEMS - 3)[: 4 + number % 5] for number in range(23)]
    for number in range(0, 23, 4):
        sequences[number][-1] = N_ITEMS - 3 + number % 3
    return make(tmp_path_factory.mktemp("shop"), sequences, n_items=N_ITEMS)


def protocol(shop):
    """Texts join the mixtures; the cold items are scored for two users at a time, two items each."""
    sizes = {"batch_size": BATCH, "width": WIDTH, "mixture_users": 11, "mixture_top": 8, "exact_users": 0}
    return evaluation(shop, graph=False, widths=[6, 12], width_users=7, **sizes)


def ranked_shards(shop, folder, shard_rows=4):
    parts = {name: protocol(shop).parts_of(system.kind) for name, system in SYSTEMS.items()}
    return RankedShards(folder, parts, shard_rows)


def ranker(shop, load=SYSTEMS.__getitem__):
    def open_mixture():
        run = protocol(shop)
        return run.mixture_recipe(MemoryMixture).open(shop, run.baselines.content)

    return SystemRanker(shop, load, True, open_mixture)


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
    monkeypatch.setattr(cold, "SCORES_AT_ONCE", 4)
    monkeypatch.setattr(cold, "CANDIDATES_AT_ONCE", 2)
    LOST.clear()
    RANKED.clear()


def rank(shards, open_ranker):
    rank_shards(shards, open_ranker, RaySettings(launcher="ray"), 0, lambda _: None)


@pytest.mark.parametrize("shard_rows", [1, 4, 100])
def test_shards_hold_the_lists_of_one_process(shop, tmp_path, shard_rows):
    alone, shards = protocol(shop), ranked_shards(shop, tmp_path, shard_rows)
    assert len(shards.shards()[0].rows) == {1: 3, 4: 6, 100: 23}[shard_rows]
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
    """Its mixtures, further beam widths and cold items too: the systems of the driver are not asked."""
    expected = protocol(shop).run(["popularity"], SYSTEMS.values(), MemoryMixture)
    shards = ranked_shards(shop, tmp_path)
    rank(shards, partial(ranker, shop))

    class Untouched(Hash):
        def rank(self, *_):
            raise AssertionError("actors rank")

        search_whole_vocabulary = score_candidates = ranking_scores = rank

    untouched = [Untouched(system.name, system.kind, system.needs_trie) for system in SYSTEMS.values()]
    table = protocol(shop).run(["popularity"], untouched, MemoryMixture, shards)
    assert [row | {"users_per_s": 0} for row in table.rows] == [row | {"users_per_s": 0} for row in expected.rows]
    rows = {row["system"]: row for row in table.rows}
    assert list(rows) == ["popularity", "a", "a+transitions", "a+counter+content", "needs", "sasrec"]
    assert all(row["recall@10_cold_among_cold"] is not None for row in rows.values())
    assert [point["invalid_whole"] is None for point in rows["a"]["widths"]] == [False, False]
    assert rows["needs"]["widths"][0]["invalid_whole"] is None and "widths" not in rows["sasrec"]
    for name, lists in (expected.lists | expected.unconstrained).items():
        np.testing.assert_array_equal((table.lists | table.unconstrained)[name], lists)


def test_a_killed_driver_goes_on_from_the_files(shop, tmp_path):
    shards = ranked_shards(shop, tmp_path)
    rank(shards, partial(ranker, shop))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.npz")}
    few = -(-len(protocol(shop).table.cold.sample) // 2)  # two users with cold targets at a time
    # 23 users in shards of 6, 11 of validation, two widths of 7 users
    assert len(files) == len(shards.shards()) == (4 + 2 + 2 * 2 + few) + (4 + 2 * 2 + few) + (4 + few)
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
    ranked = rank_on_ray(protocol(shop), inputs, None, None, tmp_path, RaySettings(launcher="ray"), 0, 4)
    assert ranked.shards() == []


def test_what_a_node_opens_ranks_by_the_protocol(shop, tmp_path):
    """As in an actor: the data set is opened by its folder, systems are loaded by their names."""
    with ArtifactJob("student", Nothing(), tmp_path / "a").write() as folder:
        (folder / "weights").write_text("")
    inputs = Inputs(shop.artifact, None, None, None, [], [artifacts.read(tmp_path / "a", "student")])

    def load(artifact, dataset, ids):
        assert ids is None and dataset.n_items == N_ITEMS
        return SYSTEMS[artifact.folder.name]

    recipe = protocol(shop).mixture_recipe(MemoryMixture)
    with pytest.raises(UserError, match="embeddings"):  # for its texts
        replaced = replace(inputs, embeddings=artifacts.Artifact(tmp_path / "none", "embeddings", "", {}, {}, {}))
        open_ranker_on_node(replaced.with_absolute_folders(), load, True, recipe, no_verify=False)
    recipe = replace(recipe, content=None)
    opened = open_ranker_on_node(inputs.with_absolute_folders(), load, True, recipe, no_verify=False)
    assert opened.open_mixture().names == ["transitions"]
    shards = RankedShards(tmp_path / "ranked", {"a": protocol(shop).parts_of("teacher")}, 100)
    rank(shards, lambda: opened)
    expected = protocol(shop).rank(SYSTEMS["a"])
    np.testing.assert_array_equal(shards.read("a").items, expected.items)


def test_shards_of_another_batch_size_are_ranked_again(shop, tmp_path):
    rank(ranked_shards(shop, tmp_path), partial(ranker, shop))
    parts = evaluation(shop, batch_size=2).parts_of("student")
    other = RankedShards(tmp_path, {"a": parts}, 6)
    assert not any(other.is_ranked(shard) for shard in other.shards() if shard.part == "evaluated")


def test_one_system_is_held_at_a_time(shop, tmp_path):
    loaded = []

    def load(name):
        loaded.append(name)
        return SYSTEMS[name]

    rank(ranked_shards(shop, tmp_path), partial(ranker, shop, load))
    assert loaded == ["a", "needs", "sasrec"]


def test_a_result_is_a_row_of_typed_columns(shop, tmp_path):
    task = shard_tasks(ranked_shards(shop, tmp_path))[0]
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
    (row,) = ShardRanker(partial(ranker, shop), expected)(pa.Table.from_pylist([shard_tasks(shards)[0]])).to_pylist()
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
