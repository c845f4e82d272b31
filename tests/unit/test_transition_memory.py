"""The transition memory and the mixture against brute force: every item scored alone, every pair counted anew."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import counting_naive as naive
from unit.test_recommender import N_ITEMS, histories, item_scores, shop

from distill.baselines.counting import TransitionSettings, count_transitions
from distill.runtime.errors import UserError
from student import count_table
from student.memory_mixture import Candidates, MixtureWeights, candidates, mixed
from student.memory_tuning import best_weights
from student.models import BACKBONES
from student.recommender import Recommender
from student.transition_memory import TransitionMemory

SETTINGS = TransitionSettings(window=3, decay=0.7, recency=0.6, last=4)


def sequences(seed=0, n_items=N_ITEMS, users=40):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, n_items, rng.integers(1, 9)).tolist() for _ in range(users)]


def memory_of(rows, n_items=N_ITEMS, **facts):
    values = np.array([item for row in rows for item in row], dtype=np.int64)
    offsets = np.cumsum([0, *map(len, rows)])
    counts = count_transitions(values, offsets, n_items, SETTINGS.window, SETTINGS.decay)
    return TransitionMemory(counts, SETTINGS, **facts)


def counter(rows, history, exclude_bought, n_items=N_ITEMS):
    """The counter's distribution from its definition."""
    history = [int(item) for item in history if item >= 0]
    scores = np.array(naive.scores(rows, history, n_items, SETTINGS))
    if exclude_bought:
        scores[history] = 0
    return scores / scores.sum() if scores.sum() else scores


@pytest.mark.parametrize("exclude_bought", [True, False])
def test_probabilities(exclude_bought):
    rows, users = sequences(users=6), histories([6, 1, 3, 2])
    found = memory_of(rows).probabilities(users, exclude_bought).toarray()
    for row, history in enumerate(users):
        np.testing.assert_allclose(found[row], counter(rows, history, exclude_bought), atol=1e-12)


def test_a_history_that_leads_nowhere_has_an_empty_row():
    memory = memory_of([[0, 1], [2, 3]], n_items=6)
    assert memory.probabilities(np.array([[0, 1], [5, -1]])).toarray().tolist() == [[0] * 6] * 2
    assert np.isfinite(memory.probabilities(np.array([[0, 4]])).toarray()).all()


@given(st.lists(st.lists(st.integers(0, 5), max_size=7), min_size=1, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_growing_is_counting_all_at_once(rows, data):
    new = [data.draw(st.integers(0, len(row))) for row in rows]
    before = memory_of([row[: len(row) - count] for row, count in zip(rows, new, strict=True)], 6)
    whole = memory_of(rows, 6).counts.toarray()
    np.testing.assert_allclose(before.grow(rows, new).counts.toarray(), whole, atol=1e-9)
    # the last `window` old items are enough
    recent = [row[max(0, len(row) - count - SETTINGS.window) :] for row, count in zip(rows, new, strict=True)]
    grown = before.grow(recent, new)
    np.testing.assert_allclose(grown.counts.toarray(), whole, atol=1e-9)
    assert grown.settings == before.settings and (grown.counts.data > 0).all()


@pytest.mark.parametrize("fold", [0, count_table.FOLD])  # never one matrix again, and at once
def test_grown_counts_read_like_counts_of_all_at_once(fold, monkeypatch):
    """With decay 1/2 all sums are exact, so every figure is the same to the bit, and the memory before is unchanged."""
    monkeypatch.setattr(count_table, "FOLD", fold)
    half, rng = TransitionSettings(window=3, decay=0.5, recency=0.6, last=4), np.random.default_rng(5)
    rows, users = sequences(4, users=60), histories([6, 1, 3, 2])

    def counted(rows):
        starts = np.cumsum([0, *map(len, rows)])
        return count_transitions(np.concatenate(rows).astype(int), starts, N_ITEMS, half.window, half.decay)

    new = [int(rng.integers(0, len(row) + 1)) if user % 7 == 0 else 0 for user, row in enumerate(rows)]
    old_rows = [row[: len(row) - count] for row, count in zip(rows, new, strict=True)]
    before, at_once = (TransitionMemory(counted(part), half) for part in (old_rows, rows))
    expected_before = before.probabilities(users).toarray()
    grown = before.grow(rows, new)
    assert 0 < sum(new) < sum(map(len, rows)) and bool(grown.table._changed) == (fold == 0)
    assert grown.probabilities(users).toarray().tolist() == at_once.probabilities(users).toarray().tolist()
    items = np.array([[3, -1], [0, 7]])
    assert grown.familiarity().tolist() == at_once.familiarity().tolist()
    assert grown.familiarity(items).tolist() == at_once.familiarity()[items].tolist()
    assert before.probabilities(users).toarray().tolist() == expected_before.tolist()
    assert before.grow(rows, [0] * len(rows)) is before


def test_growing_refuses_what_it_cannot_count():
    memory = memory_of([[0, 1]], 6)
    with pytest.raises(UserError, match="Sequence 1 names an item outside the catalogue of 6"):
        memory.grow([[0], [6]], [1, 1])
    with pytest.raises(UserError, match="Sequence 0 has 2 items, 3 of them cannot be new"):
        memory.grow([[0, 1]], [3])


def test_mixed_by_hand():
    log_probs, counter_probs = np.log([[0.5, 0.25, 0.125]]), np.array([[0.0, 0.5, 0.0]])
    assert np.exp(mixed(log_probs, counter_probs, 0.2))[0].tolist() == pytest.approx([0.4, 0.3, 0.1])
    np.testing.assert_allclose(mixed(log_probs, counter_probs, 0.0), log_probs)
    assert mixed(log_probs, counter_probs, 1.0)[0].tolist() == [-np.inf, np.log(0.5), -np.inf]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("scope", ["level", "all"])
@pytest.mark.parametrize("ranker", [False, True])
def test_a_few_candidates_are_scored_as_all_items_are(backbone, scope, ranker):
    student, users = shop(backbone, ranker, scope=scope), histories([6, 1, 3])
    student.users_at_once = 2
    items = np.array([[3, 7, -1, 0], [29, -1, -1, -1], [5, 4, 5, 2]])
    found = student.score_candidates(users, items)
    for row, history in enumerate(users):
        expected = item_scores(student.ranker or student.model, student.codes, history, scope)
        expected = np.where(items[row] < 0, -np.inf, expected[items[row]])
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


@pytest.mark.parametrize("ranker", [False, True])
@pytest.mark.parametrize("width", [3, N_ITEMS])
@pytest.mark.parametrize("exclude_bought", [True, False])
def test_the_mixture_ranks_beams_and_the_counters_items(ranker, width, exclude_bought):
    """Narrow beams: the best of the union. As wide as the catalogue: the best of all items."""
    plain, users, rows = shop(ranker=ranker), histories([6, 1, 3]), sequences(1, users=8)
    student = plain.with_transition_memory(memory_of(rows, weight=0.6, top=4, discount=0.4))
    student.users_at_once = 2
    items, scores = student.rank_items(users, width, exclude_bought)
    exact = student.score_items(users, exclude_bought)
    beams, _ = plain.rank_items(users, width, exclude_bought)
    table = naive.count(rows, N_ITEMS, SETTINGS.window, SETTINGS.decay)
    counted = np.array([sum(row) for row in table])
    for row, history in enumerate(users):
        bought = set(history[history >= 0].tolist()) if exclude_bought else set()
        counter_probs = counter(rows, history, exclude_bought)
        truth = 0.4 * np.exp(item_scores(student.ranker or student.model, student.codes, history))
        truth += 0.6 * counter_probs
        truth /= (1 + counted) ** 0.4
        np.testing.assert_allclose(np.exp(exact[row]), truth, rtol=1e-3)
        union = set(beams[row].tolist()) - {-1}
        union |= {item for item in naive.top(counter_probs.tolist(), 4, []) if item >= 0}
        listed = [item for item in items[row].tolist() if item >= 0]
        assert len(listed) == len(set(listed)) == min(width, len(union)) and set(listed) <= union - bought
        best = np.sort([truth[item] for item in union])[::-1][: len(listed)]
        np.testing.assert_allclose(truth[listed], best, rtol=1e-3)
        np.testing.assert_allclose(np.exp(scores[row, : len(listed)]), best, rtol=1e-3)
        if width == N_ITEMS:
            assert union == set(range(N_ITEMS)) - bought


def test_long_histories_with_a_memory():
    """The model reads the last 6 items, the counter its last 4 of all, and no item of the history is recommended."""
    rows, history = sequences(1, users=8), np.arange(12)
    student = shop(shared=False).with_transition_memory(memory_of(rows, weight=0.6, discount=0.4))
    table = naive.count(rows, N_ITEMS, SETTINGS.window, SETTINGS.decay)
    counted = np.array([sum(row) for row in table])
    truth = 0.4 * np.exp(item_scores(student.model, student.codes, history[-6:])) + 0.6 * counter(rows, history, True)
    truth /= (1 + counted) ** 0.4
    order = [item for item in np.argsort(-truth, kind="stable").tolist() if item not in history]
    (found,) = student.recommend([[f"i{item}" for item in history]], k=N_ITEMS, exclude_bought=True)
    assert [item.item_id for item in found] == [f"i{item}" for item in order]
    np.testing.assert_allclose([np.exp(item.score) for item in found], truth[order], rtol=1e-3)
    np.testing.assert_allclose(np.exp(student.score_items(history[None], True)[0]), truth, rtol=1e-3)


def test_without_weight_the_memory_changes_nothing_and_alone_it_is_the_counter():
    student, users, rows = shop(), histories([6, 1, 3, 5]), sequences(2)
    without_weight = student.with_transition_memory(memory_of(rows, weight=0.0))
    assert without_weight.rank_items(users, 8)[0].tolist() == student.rank_items(users, 8)[0].tolist()
    assert student.transition_memory is None and "memory" not in student.facts
    alone = student.with_transition_memory(memory_of(rows, weight=1.0)).rank_items(users, 5)[0]
    for row, history in enumerate(users):
        assert alone[row].tolist() == naive.top(counter(rows, history, True).tolist(), 5, [])


def test_save_and_load(tmp_path):
    student, users = (
        shop(ranker=True).with_transition_memory(memory_of(sequences(3), weight=0.3, top=7, discount=0.1)),
        histories([6, 1, 3]),
    )
    student.save_pretrained(tmp_path)
    loaded = Recommender.from_pretrained(tmp_path)
    for before, after in zip(student.rank_items(users, 8), loaded.rank_items(users, 8), strict=True):
        assert before.tolist() == after.tolist()
    assert (
        loaded.facts == student.facts and loaded.transition_memory.weight == 0.3 and loaded.transition_memory.top == 7
    )
    assert loaded.transition_memory.discount == 0.1
    assert len(loaded.recommend([["i1", "i2"]], k=3)[0]) == 3


def test_a_memory_of_another_catalogue():
    with pytest.raises(UserError, match=f"The memory is of 6 items, the student of {N_ITEMS}"):
        shop().with_transition_memory(memory_of([[0, 1]], 6))


def test_the_best_weight():
    # the model is right about the first user, the counter about the second, and only in the middle both are first
    proposals = Candidates(
        items=np.array([[0, 1, -1], [0, 1, 2]]),
        log_probs=np.log([[0.55, 0.3, 1e-9], [0.5, 0.3, 0.1]]),
        counter=np.array([[0.0, 0.3, 0.0], [0.12, 0.9, 0.0]]),
        familiarity=np.log([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0]]),
    )
    proposals.log_probs[0, 2] = -np.inf
    best, values = best_weights(proposals, np.array([0, 1]), discounts=(0.0,), k=1)
    assert values[best] == 1 and values[MixtureWeights(0.0)] == values[MixtureWeights(1.0)] == 0.5
    # .55 (1 − w) > .3 (1 − w) + .3 w below .45; .5 (1 − w) + .12 w < .3 (1 − w) + .9 w above .204
    assert [tried.weight for tried, value in values.items() if value == 1] == pytest.approx([0.3, 0.4])
    assert best == MixtureWeights(0.3, 0.0)
    # without the counter: the second user's item 0, twice as familiar, falls behind item 1 where .5 / 2^β < .3
    best, values = best_weights(proposals, np.array([0, 1]), (0.0,), (0.5, 0.7, 0.8, 1.0), k=1)
    assert list(values.values()) == [0.5, 0.5, 1.0, 1.0] and best == MixtureWeights(0.0, 0.8)


def test_candidates_come_once():
    beams = np.array([[4, 0, -1]]), np.array([[-1.0, -2.0, -np.inf]])

    def score(users, items):
        return np.where(items < 0, -np.inf, -10.0 - items)

    memory = memory_of([[1, 0], [1, 2], [1, 3]], 6, top=2)
    proposals = candidates(beams, score, memory, np.array([[1]]))
    assert proposals.items.tolist() == [[4, 0, -1, 2]]  # the counter's top two are 0, a beam already, and 2
    assert proposals.log_probs.tolist() == [[-1.0, -2.0, -np.inf, -12.0]]
    assert proposals.counter[0].tolist() == pytest.approx([0, 1 / 3, 0, 1 / 3])
