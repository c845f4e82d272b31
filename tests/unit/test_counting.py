from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import counting_naive as naive

from distill.baselines import counting, item_scorer
from distill.baselines.counting import Transitions, TransitionSettings, count_transitions
from distill.baselines.item_scorer import recommend, target_ranks, validation_examples
from distill.baselines.popularity import Popularity
from distill.data.dataset import Dataset, write_dataset
from distill.metrics import hit_ranks
from distill.ranking import top_items
from distill.runtime.artifacts import ArtifactJob

N_ITEMS = 12


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def make(root, sequences, n_items=N_ITEMS, ends=None):
    with ArtifactJob("dataset", Nothing(), root / "dataset").write() as folder:
        items = pa.table({"item_id": [f"i{number}" for number in range(n_items)]})
        users = [f"u{u}" for u in range(len(sequences))]
        write_dataset(folder, items, users, [np.array(s) for s in sequences], ends=ends)
    return Dataset.load(root / "dataset")


@pytest.fixture
def shop(tmp_path):
    rng = np.random.default_rng(0)
    return make(tmp_path, [rng.integers(0, N_ITEMS, rng.integers(3, 9)) for _ in range(25)])


@given(
    st.lists(st.lists(st.integers(0, 5), max_size=7), min_size=1, max_size=5),
    st.integers(1, 9),
    st.sampled_from([1.0, 0.7, 0.25]),
)
@settings(max_examples=60, deadline=None)
def test_counts(sequences, window, decay):
    values = np.array([item for sequence in sequences for item in sequence], dtype=np.int64)
    offsets = np.cumsum([0, *map(len, sequences)])
    counts = count_transitions(values, offsets, 6, window, decay).toarray()
    np.testing.assert_allclose(counts, naive.count(sequences, 6, window, decay), atol=1e-12)


def test_counts_by_hand():
    counts = count_transitions(np.array([0, 1, 2, 3, 2]), np.array([0, 3, 5]), 4, window=2, decay=0.5).toarray()
    # 0-1, 1-2 and 3-2 are neighbours, 0-2 at distance 2; 2-3 across users is no pair
    expected = [[0, 1, 0.5, 0], [1, 0, 1, 0], [0.5, 1, 0, 1], [0, 0, 1, 0]]
    assert counts.tolist() == expected


@pytest.mark.parametrize("with_validation", [False, True])
@pytest.mark.parametrize(
    "given_settings",
    [TransitionSettings(1, 1.0, 1.0, 1), TransitionSettings(3, 0.7, 0.6, 2), TransitionSettings(20, 0.8, 0.9, 20)],
)
def test_scores(shop, given_settings, with_validation):
    end = -1 if with_validation else -2
    training = [shop.sequence(user)[:end].tolist() for user in range(shop.n_users)]
    model = Transitions(shop, given_settings, with_validation)
    examples = shop.examples("test", max_history=6)
    scores = model.scores(examples.histories)
    for row, history in enumerate(examples.histories):
        bought = [int(item) for item in history if item >= 0]
        expected = naive.scores(training, bought, N_ITEMS, given_settings)
        np.testing.assert_allclose(scores[row], expected, atol=1e-12)


def test_scores_under_a_split_by_time(tmp_path):
    """Counts come from before the cut, for all users, and the baselines rank several targets of one user."""
    rng = np.random.default_rng(2)
    sequences, ends = [], []
    for _ in range(20):
        length = rng.integers(3, 9)
        sequences.append(rng.integers(0, N_ITEMS, length))
        ends.append(np.sort(rng.integers(0, length + 1, 2)))
    shop = make(tmp_path, sequences, ends=np.array(ends))
    chosen = TransitionSettings(3, 0.7, 0.6, 4)
    for with_validation in (False, True):
        early = [row[: end[int(with_validation)]].tolist() for row, end in zip(sequences, ends, strict=True)]
        model = Transitions(shop, chosen, with_validation)
        examples = shop.examples("test", 6)
        scores = model.scores(examples.histories)
        for row, history in enumerate(examples.histories):
            bought = [int(item) for item in history if item >= 0]
            np.testing.assert_allclose(scores[row], naive.scores(early, bought, N_ITEMS, chosen), atol=1e-12)
    assert len(examples) > len(np.unique(examples.users))
    assert recommend(model, examples, 3).shape == (len(examples), 3)
    counted = np.bincount(
        np.concatenate([row[: end[0]] for row, end in zip(sequences, ends, strict=True)]), minlength=12
    )
    assert Popularity(shop).counts.tolist() == counted.tolist()


@pytest.mark.parametrize("exclude_bought", [True, False])
def test_recommend(shop, exclude_bought, monkeypatch):
    monkeypatch.setattr(item_scorer, "CHUNK", 7)  # several chunks, the last one short
    chosen = TransitionSettings(3, 0.7, 0.6, 5)
    model, examples = Transitions(shop, chosen), shop.examples("valid")
    lists = recommend(model, examples, 5, exclude_bought)
    scores = model.scores(examples.histories)
    for row, history in enumerate(examples.histories):
        bought = [int(item) for item in history if item >= 0]
        assert lists[row].tolist() == naive.top(scores[row].tolist(), 5, bought if exclude_bought else [])


def test_items_that_were_never_bought_score_nothing(tmp_path):
    shop = make(tmp_path, [[0, 1, 2, 3], [5, 4, 2, 3]], n_items=8)
    scores = Transitions(shop, TransitionSettings()).scores(np.array([[0, -1], [3, 7]]))
    assert np.isfinite(scores).all()
    assert np.flatnonzero(scores[0]).tolist() == [1] and not scores[1].any()
    lists = recommend(Transitions(shop, TransitionSettings()), shop.examples("valid"), 3)
    assert lists.tolist() == [[-1, -1, -1], [-1, -1, -1]]  # 0 and 1 lead to each other only, both are bought


def test_reachable(tmp_path):
    """0-1-2 met in training; 3 and 4 met each other only; 7 was never bought there."""
    shop = make(tmp_path, [[0, 1, 2, 3, 3], [3, 4, 3, 7], [0, 2, 1], [4, 3, 0, 4]], n_items=8)
    near = Transitions(shop, TransitionSettings(window=1))
    assert counting.reachable(near, shop.examples("valid")).tolist() == [False, True, False, False]
    wide = Transitions(shop, TransitionSettings(window=2))
    assert counting.reachable(wide, shop.examples("valid")).tolist() == [False, True, True, False]
    assert counting.reachable(wide, shop.examples("test")).tolist() == [False, False, True, True]


def test_popularity(tmp_path):
    shop = make(tmp_path, [[0, 1, 1, 5, 5], [1, 2, 5, 5], [2, 0, 3, 3, 3]], n_items=6)
    # training parts: 0 1 1 | 1 2 | 2 0 3 → counts 2 3 2 1 0 0
    assert Popularity(shop).scores(np.zeros((2, 1), int)).tolist() == [[2, 3, 2, 1, 0, 0]] * 2
    lists = recommend(Popularity(shop), shop.examples("valid"), 4)
    assert lists.tolist() == [[2, 3, -1, -1], [0, 3, -1, -1], [1, -1, -1, -1]]
    lists = recommend(Popularity(shop), shop.examples("valid"), 4, exclude_bought=False)
    assert lists.tolist() == [[1, 0, 2, 3]] * 3


def test_top_items_breaks_ties_by_number():
    scores = np.array([[1.0, 3, 3, 0, 2], [0, 0, 0, 0, 1]])
    assert top_items(scores, 3).tolist() == [[1, 2, 4], [4, -1, -1]]
    assert top_items(scores, 9).tolist() == [[1, 2, 4, 0, -1], [4, -1, -1, -1, -1]]


@pytest.mark.parametrize("k", [1, 4, 10, 30])
def test_ties_at_the_edge_of_the_list(k):
    """Ties at the last place are broken by item number too."""
    scores = np.random.default_rng(0).integers(0, 4, (50, 30)).astype(float)
    assert top_items(scores, k).tolist() == [naive.top(row, k, []) for row in scores.tolist()]


@pytest.mark.parametrize("exclude_bought", [True, False, None])
def test_tune_takes_the_best_by_validation(tmp_path, exclude_bought):
    """Settings are chosen as the evaluation ranks: bought items excluded or not, None as the data say."""
    rng = np.random.default_rng(1)
    # the next item is told by the third last one, which a window of 1 cannot see; some users buy an item again
    sequences = []
    for _ in range(80):
        first = rng.integers(0, 10, 3)
        sequences.append(np.concatenate([first, first + 10, first + 20, rng.integers(0, 30, 1)]))
    for _ in range(40):
        again = rng.integers(0, 30, 2)
        sequences.append(np.concatenate([again, again, again]))
    shop = make(tmp_path, sequences, n_items=30)
    assert shop.repeats()
    examples = shop.examples("valid")
    values = {}
    for choice in counting.GRID:
        lists = recommend(Transitions(shop, choice), examples, 10, bool(exclude_bought))
        pairs = zip(lists.tolist(), examples.targets.tolist(), strict=True)
        values[choice] = float(np.mean([naive.gain(row, target, 10) for row, target in pairs]))
    model, value = Transitions.tune(shop, exclude_bought)
    assert value == pytest.approx(max(values.values()))
    assert values[model.settings] == pytest.approx(value)
    assert max(values.values()) > min(values.values()) + 0.1
    if exclude_bought:
        assert model.settings.window > 1
    np.testing.assert_allclose(model.matrix.toarray(), Transitions(shop, model.settings).matrix.toarray())


def test_target_ranks_are_those_of_the_lists():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (60, 30)).astype(float)  # many ties, many zeros
    targets = rng.integers(0, 30, 60)
    expected = hit_ranks(top_items(scores, 30), targets)
    assert target_ranks(scores, targets).tolist() == expected.tolist()


def test_tuning_sees_the_full_history(tmp_path):
    """Item 0 was bought 22 items ago: it must not be recommended again, and it must not cost the target a place."""
    sequences = [[0, *range(1, 23), 23, 24, 25] for _ in range(3)]
    shop = make(tmp_path, sequences, n_items=26)
    histories = validation_examples(shop, 10).histories
    assert histories.shape[1] == 25 and histories[0, :24].tolist() == list(range(24))


def test_shares(shop):
    model, histories = Transitions(shop, TransitionSettings(3)), shop.examples("valid").histories
    scores = model.scores(histories)
    np.testing.assert_allclose(model.shares(histories, False), scores / scores.sum(1, keepdims=True))
    shares = model.shares(histories, True)
    for row, history in enumerate(histories):
        bought = [int(item) for item in history if item >= 0]
        rest = [0 if item in bought else score for item, score in enumerate(scores[row])]
        expected = np.array(rest) / (sum(rest) or 1)
        np.testing.assert_allclose(shares[row], expected)
