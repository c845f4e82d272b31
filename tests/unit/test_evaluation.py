"""The evaluation on a shop worked out by hand, with systems that record what they are asked."""

import numpy as np
import pytest
from unit.test_counting import make

from distill.baselines.counting import TransitionSettings
from distill.baselines.item_scorer import longest_history
from distill.data.dataset import PAD
from distill.data.histories import last_items
from distill.evaluation.baseline_systems import Baseline, choose_floor
from distill.evaluation.config import EvaluationSettings
from distill.evaluation.evaluate import Evaluation
from distill.evaluation.measures import beam_missed, measure_reach
from distill.runtime import artifacts
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.semantic_ids import embeddings
from distill.semantic_ids.embeddings import text_vectors

N_ITEMS = 40


class Recorder:
    """A system that recommends the same items to everybody and keeps what it was asked."""

    name, kind, parameters, needs_trie = "recorder", "student", 7, False

    def __init__(self):
        self.histories = []

    def rank(self, histories, beam_width, exclude_bought, constrained):
        self.histories += histories.tolist()
        items = np.tile(np.arange(beam_width), (len(histories), 1))
        if not constrained:
            items[:, 0] = PAD
        return items, -items.astype(float)

    def score_all(self, histories, exclude_bought):
        return np.tile(-np.arange(N_ITEMS, dtype=float), (len(histories), 1))

    def score_candidates(self, histories, items):
        raise AssertionError("nothing is mixed here")

    def ranking_scores(self, histories, items, exclude_bought):
        raise AssertionError("no target is cold here")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Users with 30 items, none twice: their first items lie further back than any system reads."""
    rng = np.random.default_rng(0)
    return make(tmp_path_factory.mktemp("shop"), [rng.permutation(N_ITEMS)[:30] for _ in range(12)], n_items=N_ITEMS)


def evaluation(shop, **settings):
    defaults = {"transitions": TransitionSettings(5, 0.7, 0.7, 10), "exact_users": 3, "width": 10, "cutoffs": [5, 10]}
    vectors = np.random.default_rng(1).normal(size=(N_ITEMS, 4))
    return Evaluation(EvaluationSettings(**defaults | settings), shop, vectors, vectors, {"dataset": "shop"})


def test_systems_get_full_histories(shop):
    system = Recorder()
    table = evaluation(shop).run([], [system], None)
    asked = {tuple(item for item in history if item != PAD) for history in system.histories}
    assert asked == {tuple(shop.sequence(user)[:-1].tolist()) for user in range(shop.n_users)}
    row = table.rows[0]
    assert row["system"] == "recorder" and row["parameters"] == 7 and row["users"] == 12
    assert row["invalid@10"] == pytest.approx(0.1)
    assert row["floor"] is None and "ndcg@10_above_floor" not in row


def test_a_system_that_needs_the_trie_is_never_searched_without(shop, monkeypatch):
    monkeypatch.setattr(Recorder, "needs_trie", True)
    monkeypatch.setattr(Recorder, "search_whole_vocabulary", lambda *_: None, raising=False)
    table = evaluation(shop, widths=[5, 10], width_users=3).run([], [Recorder()], None)
    row = table.rows[0]
    assert row["invalid@10"] is None
    assert table.unconstrained == {}
    assert [(point["width"], point["invalid"]) for point in row["widths"]] == [(5, None), (10, None)]


def test_no_baseline_recommends_what_was_bought_long_ago(shop):
    names = ["popularity", "transitions", "transitions+valid", "graph", "content", "counter+content"]
    table = evaluation(shop).run(names, [], None)
    assert list(table.lists) == names
    for lists in table.lists.values():
        for user, items in enumerate(lists):
            assert not set(items.tolist()) & set(shop.sequence(user)[:-1].tolist())
    # all items but 29 bought ones are left, so that content lists them all
    assert (table.lists["content"] != PAD).sum(1).tolist() == [10] * 12


def test_the_beams_are_compared_with_exact_scores(shop):
    table = evaluation(shop, exclude_bought=False).run([], [Recorder()], None)
    assert table.rows[0]["beam_missed@10"] == 0
    table = evaluation(shop, exclude_bought=True).run([], [Recorder()], None)
    # the recorder lists 0 … 9 whatever was bought; the truly best are the first ten that were not
    free = [[item for item in range(N_ITEMS) if item not in shop.sequence(user)[:-1]][:10] for user in range(3)]
    missed = [len([item for item in best if item > 9]) / 10 for best in free]
    assert table.rows[0]["beam_missed@10"] == pytest.approx(np.mean(missed)) and np.mean(missed) > 0


def test_the_floor_is_chosen_on_validation(shop):
    """`graph` knows the validation targets, `popularity` the test targets: the first is the floor."""
    valid, test = (shop.examples(split, longest_history(shop)) for split in ("valid", "test"))
    answers = {"popularity": test.targets, "graph": valid.targets, "transitions+valid": valid.targets}

    class Oracle:
        def __init__(self, targets):
            self.targets = targets

        def recommend(self, examples, k, exclude_bought):
            return np.where(np.arange(k) == 0, self.targets[: len(examples), None], PAD)

    baselines = [Baseline(name, Oracle(targets)) for name, targets in answers.items()]
    floor, values = choose_floor(baselines, shop, exclude_bought=False)
    assert floor == "graph" and values == {"popularity": 0, "graph": 1}
    assert choose_floor([], shop, exclude_bought=False) == (None, {})


def test_reach_by_hand():
    lists, targets = np.array([[0, 1], [2, 3], [4, 5]]), np.array([1, 9, 4])
    reachable = np.array([True, True, False])
    expected = {"recall@2_reachable": 0.5, "recall@2_unreachable": 1.0}
    assert measure_reach(lists, targets, reachable, 2) == expected
    assert measure_reach(lists, targets, np.ones(3, bool), 2)["recall@2_unreachable"] is None


def test_missed_by_hand():
    exact = np.array([[5.0, 4, 3, 2], [1, 2, 3, 4]])
    assert beam_missed(np.array([[0, 2], [3, 2], [0, 0]]), exact, 2) == pytest.approx((0.5 + 0) / 2)
    few = np.array([[-1.0, -np.inf, -2.0], [-np.inf] * 3])  # fewer than k items may be recommended, or none
    assert beam_missed(np.array([[0, -1], [-1, -1]]), few, 10) == pytest.approx(0.5)


def test_last_items():
    histories = np.array([[1, 2, 3, 4], [5, PAD, PAD, PAD], [6, 7, 8, PAD]])
    assert last_items(histories, 2).tolist() == [[3, 4], [5, PAD], [7, 8]]
    assert last_items(histories, 9).tolist() == histories.tolist()


def test_the_text_part_of_embeddings(shop, tmp_path):
    """Dimensions that tell what is bought together follow the texts; `content` leaves them out."""
    vectors = np.random.default_rng(0).normal(size=(N_ITEMS, 5)).astype(np.float32)
    names = shop.items["item_id"].to_pylist()
    for mean, size in (([0.5, 0.0, -0.1, 0.0, 0.0], 3), ([0.5, 0.1, 0.1, 0.1, 0.2], 5)):
        job = ArtifactJob("embeddings", EvaluationSettings(), tmp_path / str(size), [shop.artifact])
        with job.write() as folder:
            embeddings.write(folder, vectors, names)
            write_json(folder / "space.json", {"text_factor": 1.0, "mean": mean})
        result = text_vectors(artifacts.read(tmp_path / str(size), "embeddings"), N_ITEMS)
        assert result.tolist() == vectors[:, :size].tolist()
