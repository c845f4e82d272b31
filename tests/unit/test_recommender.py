"""A recommender of random weights against brute force: every item scored alone by teacher forcing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.runtime.errors import UserError
from student.models import BACKBONES
from student.recommender import Recommender
from student.threads import few_threads

LEVELS, SIZE, N_ITEMS = 3, 4, 30
SIZES = {"d_model": 16, "d_ff": 32, "heads": 2, "d_head": 8}


def network(backbone, seed=0):
    torch.manual_seed(seed)
    network_class, config, _ = BACKBONES[backbone]
    return network_class(config(LEVELS, SIZE, **SIZES)).eval()


def shop(backbone="seq2seq", ranker=False, seed=0, shared=True, scope="level"):
    numbers = np.random.default_rng(seed).choice(SIZE**LEVELS, N_ITEMS, replace=False)
    codes = np.stack(np.unravel_index(numbers, (SIZE,) * LEVELS), axis=1)
    if shared:
        codes[7] = codes[3]  # two items behind one ID
    ids = [f"i{number}" for number in range(N_ITEMS)]
    second = network(backbone, seed + 1) if ranker else None
    facts = {"backbone": backbone, "max_history": 6, "scope": scope}
    return Recommender(network(backbone, seed), codes, ids, ids, second, facts)


def histories(lengths, seed=1):
    rng = np.random.default_rng(seed)
    padded = rng.integers(0, N_ITEMS, (len(lengths), 6))
    return np.where(np.arange(6) < np.array(lengths)[:, None], padded, -1)


@torch.no_grad()
def item_scores(model, codes, history, scope="level"):
    """log P of every item after one history, one item at a time."""
    history_codes = codes[torch.from_numpy(history[history >= 0])][None]
    scores = []
    for row in codes:
        networks = "level" if scope == "trie" else scope
        log_probs = model.log_probs(model.encode(history_codes), row[None, None], networks)[0, 0]
        if scope == "trie":  # one prefix at a time: the codewords with which some item goes on
            for level in range(LEVELS):
                after = codes[(codes[:, :level] == row[:level]).all(1), level].unique()
                log_probs[level] -= log_probs[level, after].logsumexp(0)
        start = SIZE if scope == "all" else 0
        scores.append(sum(log_probs[level, start * level + code].item() for level, code in enumerate(row.tolist())))
    return np.array(scores)


def ranking(scores, excluded):
    """Item numbers by score, ties by number."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], item))
    return [item for item in order if item not in excluded]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("exclude_bought", "scope"), [(True, "level"), (False, "level"), (True, "trie")])
def test_wide_beams_are_the_ranking_of_all_items(backbone, exclude_bought, scope):
    student, users = shop(backbone, scope=scope), histories([6, 1, 3])
    items, scores = student.rank_items(users, N_ITEMS, exclude_bought)
    exact = student.score_items(users)
    for row, history in enumerate(users):
        expected = item_scores(student.model, student.codes, history, scope)
        np.testing.assert_allclose(exact[row], expected, atol=1e-4)
        order = ranking(expected.round(4), set(history.tolist()) if exclude_bought else set())
        found = [item for item in items[row].tolist() if item >= 0]
        assert len(found) == len(order) and len(set(found)) == len(found)
        np.testing.assert_allclose(scores[row, : len(found)], expected[found], atol=1e-4)
        np.testing.assert_allclose(expected[found], expected[order], atol=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_other_users_and_batch_size_change_no_list(backbone):
    student, users = shop(backbone), histories([6, 1, 3, 2, 5, 4, 1, 6, 2])
    together, scores = student.rank_items(users, 8)
    for size in (1, 2, 4):
        student.users_at_once = size
        items, again = student.rank_items(users, 8)
        assert items.tolist() == together.tolist()
        np.testing.assert_allclose(again, scores, atol=1e-5)
    for row, history in enumerate(users):  # alone, and padded further
        wide = np.append(history, [-1, -1])[None]
        assert student.rank_items(wide, 8)[0].tolist() == together[row : row + 1].tolist()


@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from(list(BACKBONES)))
@settings(max_examples=25, deadline=None)
def test_every_recommendation_is_an_item_and_new(seed, width, backbone):
    """Random catalogues: chains, shared IDs, fewer items than beams."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 20))
    codes = rng.integers(0, rng.integers(1, SIZE + 1), (n, LEVELS))
    student = Recommender(network(backbone), codes, [str(i) for i in range(n)], [""] * n, None, {"max_history": 4})
    users = np.full((3, 4), -1)
    for row in users:
        row[: rng.integers(1, 5)] = rng.integers(0, n)
    items, scores = student.rank_items(users, width)
    for row, history in enumerate(users):
        found = items[row][items[row] >= 0].tolist()
        assert len(found) == len(set(found)) and not set(found) & set(history.tolist())
        assert (np.diff(scores[row, : len(found)]) <= 1e-6).all()
        if width >= n:
            assert set(found) == set(range(n)) - set(history.tolist())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("scope", ["level", "all", "trie"])
def test_the_ranker_orders_the_retrievers_beams(backbone, scope):
    student, alone = (shop(backbone, ranker, shared=False, scope=scope) for ranker in (True, False))
    users = histories([4, 2])
    items, scores = student.rank_items(users, 10)
    retrieved, _ = alone.rank_items(users, 10)
    for row, history in enumerate(users):
        mean = item_scores(student.ranker, student.codes, history, scope) / LEVELS  # M of the paper
        assert set(items[row]) == set(retrieved[row])
        np.testing.assert_allclose(scores[row], mean[items[row]], atol=1e-5)
        np.testing.assert_allclose(np.sort(mean[retrieved[row]])[::-1], scores[row], atol=1e-5)
        np.testing.assert_allclose(student.score_items(users)[row], mean * LEVELS, atol=1e-4)


def test_over_the_tries_children_all_ids_together_have_probability_one():
    student = shop(shared=False, scope="trie")
    scores = student.score_items(histories([6, 1, 3]))
    np.testing.assert_allclose(np.exp(scores).sum(1), 1, rtol=1e-4)
    assert np.exp(shop(shared=False).score_items(histories([6]))).sum() < 0.9  # over the level's codewords it is less


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("ranker", [False, True])
def test_the_search_is_one_graph(backbone, ranker):
    """`fullgraph` fails where the search returns to Python; all batches have one shape, so it is captured once."""
    torch.compiler.reset()
    student, users = shop(backbone, ranker), histories([6, 1, 3, 2, 5])
    items, scores = student.rank_items(users, 8)
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    student.users_at_once = 2
    compiled = student.compile(backend=count)
    for _ in range(2):
        again, same = compiled.rank_items(users, 8)
        assert again.tolist() == items.tolist()
        np.testing.assert_allclose(same, scores, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("ranker", [False, True])
def test_the_model_reads_the_last_max_history_items(backbone, ranker):
    """Students are trained with at most max_history items, here 6; longer histories get the same scores."""
    student = shop(backbone, ranker)
    users = np.full((3, 10), -1)
    users[0, :10], users[1, :7], users[2, :2] = np.arange(10), np.arange(20, 27), [5, 6]
    recent = np.full((3, 6), -1)
    recent[0], recent[1], recent[2, :2] = np.arange(4, 10), np.arange(21, 27), [5, 6]
    items, scores = student.rank_items(users, 8, exclude_bought=False)
    expected_items, expected_scores = student.rank_items(recent, 8, exclude_bought=False)
    assert items.tolist() == expected_items.tolist()
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    np.testing.assert_allclose(student.score_items(users), student.score_items(recent), atol=1e-5)
    few = np.array([[1, 12, 29], [0, 3, -1], [28, 7, 5]])
    np.testing.assert_allclose(student.score_candidates(users, few), student.score_candidates(recent, few), atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_items_of_a_long_history_are_excluded(backbone):
    """Also the items before the last max_history, which the model does not read."""
    student = shop(backbone, shared=False)
    history = np.arange(10)
    order = ranking(item_scores(student.model, student.codes, history[-6:]), set(history.tolist()))
    (found,) = student.recommend([[f"i{item}" for item in history]], k=N_ITEMS, exclude_bought=True)
    assert [item.item_id for item in found] == [f"i{item}" for item in order]
    (found,) = student.recommend([[f"i{item}" for item in history]], k=N_ITEMS, exclude_bought=False)
    assert len(found) == N_ITEMS


def test_compiled_graphs_for_long_histories_are_few():
    """The items to exclude are padded to 6, 12, 24 ... so that the search is captured once for each."""
    torch.compiler.reset()  # graphs of other test files make the compiler expect shapes that change
    student, graphs = shop(), []
    longs = [[f"i{item}" for item in range(length)] for length in (2, 6, 7, 9, 12)]
    expected = [student.recommend([history], k=5, exclude_bought=True) for history in longs]

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    student.users_at_once = 1
    compiled = student.compile(backend=count)
    found = [compiled.recommend([history], k=5, exclude_bought=True) for history in longs]
    assert [[item.item_id for item in lists[0]] for lists in found] == [
        [item.item_id for item in lists[0]] for lists in expected
    ]
    assert len(graphs) == 2


def test_half_precision_keeps_most_of_a_list():
    student, users = shop(), histories([6, 1, 3, 2, 5, 4])
    items, _ = student.rank_items(users, 8)
    student.model.to(torch.bfloat16)
    halved, _ = student.rank_items(users, 8)
    shared = np.mean([len(set(a) & set(b)) / 8 for a, b in zip(items.tolist(), halved.tolist(), strict=True)])
    assert shared > 0.8 and (halved >= 0).all()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_save_and_load(backbone, tmp_path):
    student, users = shop(backbone, ranker=True), histories([6, 1, 3])
    student.save_pretrained(tmp_path)
    loaded = Recommender.from_pretrained(tmp_path)
    for before, after in zip(student.rank_items(users, 8), loaded.rank_items(users, 8), strict=True):
        assert before.tolist() == after.tolist()
    assert loaded.facts == student.facts
    first = loaded.recommend([["i1", "i2"], ["i3"]], k=3)
    assert [len(items) for items in first] == [3, 3]
    assert "i7" in {
        item.item_id for item in loaded.recommend([["i3"]], k=N_ITEMS)[0]
    }  # shares i3's ID, is another item
    with pytest.raises(UserError, match=r"Unknown item id 'nothing' in history 1"):
        loaded.recommend([["i1"], ["nothing"]])
    with pytest.raises(UserError, match="History 0 is empty"):
        loaded.recommend([[]])


def test_small_batches_use_few_threads_and_restore_them(monkeypatch):
    thread_counts = [3]  # torch is patched: its effect depends on the OpenMP that was loaded first
    monkeypatch.setattr(torch, "get_num_threads", lambda: thread_counts[-1])
    monkeypatch.setattr(torch, "set_num_threads", thread_counts.append)
    for users, threads in ((1, 1), (8, 2), (1000, 3)):
        with few_threads(users):
            assert thread_counts[-1] == threads
        assert thread_counts[-1] == 3
