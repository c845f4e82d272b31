"""Recommendations of cold items, worked out by hand."""

import numpy as np
import pytest
from unit.test_counting import make
from unit.test_evaluation import Recorder, evaluation

from distill.data.dataset import PAD
from distill.evaluation import cold
from distill.evaluation.cold import ColdTargets
from distill.evaluation.report.table import target_table

GAIN = 1 / np.log2(3)  # of the second place


@pytest.fixture
def shop(tmp_path):
    """Items 4, 5, 6 and 7 are in no training sequence; the test targets are 4, 1, 6 and 5."""
    return make(tmp_path, [[0, 1, 7, 4], [1, 2, 3, 1], [2, 3, 4, 6], [3, 0, 1, 5]], n_items=8)


def score_by(table):
    """Scores given items by a table [n_items], the same for all users."""
    return lambda histories, items: np.asarray(table, dtype=float)[items]


def test_cold_targets_by_hand(shop):
    examples = shop.examples("test")
    targets = ColdTargets.find(shop, examples, 100)
    assert targets.items.tolist() == [4, 5, 6, 7] and targets.is_cold.tolist() == [True, False, True, True]
    assert targets.sample.targets.tolist() == [4, 6, 5]
    # of three users one has the target first and one second; the second user's target is not cold
    lists = np.array([[4, 0], [1, 0], [5, 6], [3, 2]])
    figures = targets.measure_lists(lists, examples.targets, 2)
    expected = {"cold_users": 3, "recall@2_cold": 2 / 3, "ndcg@2_cold": (1 + GAIN) / 3}
    assert figures == pytest.approx(expected)


def test_among_cold_items_by_hand(shop):
    targets = ColdTargets.find(shop, shop.examples("test"), 100)
    score = score_by([9, 9, 9, 9, 1, 3, 2, 4])  # warm items have the highest scores and are not ranked
    # user 0 bought 7: 5, 6, then 4; user 2 bought 4: 7, 5, then 6; user 3: 7, then 5
    assert targets.measure_scores(score, 2, True) == pytest.approx(
        {"recall@2_cold_among_cold": 1 / 3, "ndcg@2_cold_among_cold": GAIN / 3}
    )
    assert targets.measure_scores(score, 3, True)["recall@3_cold_among_cold"] == 1
    # with bought items user 0 gets 7, 5, 6
    assert targets.measure_scores(score, 3, False)["recall@3_cold_among_cold"] == pytest.approx(2 / 3)
    # counting gives cold items nothing: they are not recommended, whatever their numbers are
    nothing = targets.measure_scores(score_by(np.zeros(8)), 2, True, above=0)
    assert nothing == {"recall@2_cold_among_cold": 0, "ndcg@2_cold_among_cold": 0}


def test_in_parts(shop, monkeypatch):
    targets = ColdTargets.find(shop, shop.examples("test"), 100)
    score = score_by([9, 9, 9, 9, 1, 3, 2, 4])
    whole = targets.measure_scores(score, 2, True)
    monkeypatch.setattr(cold, "CANDIDATES_AT_ONCE", 3)
    monkeypatch.setattr(cold, "SCORES_AT_ONCE", 6)
    assert targets.measure_scores(score, 2, True) == whole


def test_without_cold_targets_or_scores(shop, tmp_path):
    none = {"recall@2_cold_among_cold": None, "ndcg@2_cold_among_cold": None}
    assert ColdTargets.find(shop, shop.examples("test"), 100).measure_scores(None, 2, True) == none
    assert len(ColdTargets.find(shop, shop.examples("test"), 2).sample) == 2
    warm = make(tmp_path / "warm", [[0, 1, 2, 0, 1], [1, 2, 0, 1, 2]], n_items=3)
    examples = warm.examples("test")
    targets = ColdTargets.find(warm, examples, 100)
    assert targets.measure_scores(score_by([1, 2, 3]), 2, True) == none
    lists = np.zeros((2, 2), int)
    expected = {"cold_users": 0, "recall@2_cold": None, "ndcg@2_cold": None}
    assert targets.measure_lists(lists, examples.targets, 2) == expected


class ColdRecorder(Recorder):
    """Ranks the items with the highest numbers first among the cold ones."""

    def ranking_scores(self, histories, items, exclude_bought):
        return np.where(items == PAD, -np.inf, items.astype(float))


def test_every_row_has_the_figures(tmp_path):
    """Training has the items 0 to 17; the target of user u is 30 + u."""
    shop = make(tmp_path, [[*range(user, user + 9), 29, 30 + user] for user in range(10)], n_items=40)
    names = ["popularity", "transitions", "graph", "content"]
    table = evaluation(shop).run(names, [ColdRecorder()], None)
    rows = {row["system"]: row for row in table.rows}
    for row in rows.values():
        assert row["cold_users"] == 10
        assert row["recall@10_cold"] == next(
            group["recall@10"] for group in row["by_popularity"] if group["group"] == "unseen"
        )
    among = {name: row["recall@10_cold_among_cold"] for name, row in rows.items()}
    # counting recommends no cold item; the walk only lists items
    assert shop.cold_items().tolist() == list(range(18, 40))
    assert among["popularity"] == among["transitions"] == 0 and among["graph"] is None
    assert 0 < among["content"] < 1
    assert among["recorder"] == 1  # the ten with the highest numbers are the targets
    columns = [column.head for column in target_table(table.rows).columns]
    assert columns[-2:] == ["cold", "cold among cold"]


def test_too_many_scores_are_not_asked_for(tmp_path, monkeypatch):
    """Ten users and 22 cold items make 220 scores."""
    shop = make(tmp_path, [[*range(user, user + 9), 29, 30 + user] for user in range(10)], n_items=40)
    for limit, expected in ((220, 1), (219, None)):
        monkeypatch.setitem(cold.MAX_SCORES, "student", limit)
        (row,) = evaluation(shop).run([], [ColdRecorder()], None).rows
        assert row["recall@10_cold_among_cold"] == expected and row["recall@10_cold"] is not None
