"""The content memory and the mixture of three: by hand, and against every item scored alone."""

import json

import numpy as np
import pytest
from reference import content_naive
from unit.test_item_models import model_of
from unit.test_recommender import N_ITEMS, histories, item_scores, shop
from unit.test_transition_memory import counter, memory_of, sequences

from distill.baselines.content import Content, ContentSettings
from distill.runtime.errors import UserError
from student import content_memory
from student.content_memory import ContentMemory
from student.item_recommender import ItemRecommender
from student.memory_mixture import Candidates, MixtureWeights, candidates, mixed
from student.memory_tuning import best_weights
from student.recommender import Recommender

VECTORS = np.random.default_rng(5).normal(1, 2, (N_ITEMS, 6))
READING = ContentSettings(recency=0.6, last=3)


def content_of(**facts):
    return ContentMemory.of(Content(VECTORS, READING), **facts)


def content_probabilities(history, temperature, exclude_bought):
    """softmax(cosine / τ) from the definition."""
    history = [int(item) for item in history if item >= 0]
    cosines = content_naive.cosines(VECTORS.tolist(), history, READING.recency, READING.last)
    left_out = history if exclude_bought else []
    return np.array(content_naive.mixture([0.0] * N_ITEMS, cosines, 1.0, temperature, left_out))


def test_probabilities_by_hand():
    # centred and of length 1: (1, 0), (-1, 0), (0, 1), (0, -1); the cosines with item 0 are 1, -1, 0, 0
    memory = ContentMemory.of(Content(np.array([[4.0, 1], [2, 1], [3, 3], [3, -1]])), temperature=0.5)
    powers = np.exp([2, -2, 0, 0])
    users = np.array([[0]])
    np.testing.assert_allclose(memory.probabilities(users, False)[0], powers / powers.sum(), atol=1e-6)
    powers[0] = 0  # bought
    np.testing.assert_allclose(memory.probabilities(users)[0], powers / powers.sum(), atol=1e-6)


def test_mixed_by_hand():
    log_probs, counted, similar = np.log([[0.5, 0.25, 0.125]]), np.array([[0.0, 0.5, 0.0]]), np.array([[0.1, 0.0, 0.8]])
    result = np.exp(mixed(log_probs, counted, 0.2, similar, 0.3))[0].tolist()
    assert result == pytest.approx([0.25 + 0.03, 0.125 + 0.1, 0.0625 + 0.24])
    # without weight the content changes no bit; 1 − .9 − .1 is no negative share
    assert mixed(log_probs, counted, 0.2, similar, 0.0).tolist() == mixed(log_probs, counted, 0.2).tolist()
    assert np.exp(mixed(log_probs, counted, 0.9, similar, 0.1))[0].tolist() == pytest.approx([0.01, 0.45, 0.08])


@pytest.mark.parametrize("ranker", [False, True])
@pytest.mark.parametrize("exclude_bought", [True, False])
@pytest.mark.parametrize("width", [3, N_ITEMS])
def test_the_mixture_of_three(ranker, exclude_bought, width):
    """The union of beams, counter's and content's items, ranked by the sum of three exact distributions."""
    plain, users, rows = shop(ranker=ranker), histories([6, 1, 3]), sequences(1, users=8)
    student = plain.with_transition_memory(memory_of(rows, weight=0.4, top=4, discount=0.4))
    student = student.with_content_memory(content_of(weight=0.35, temperature=0.3, top=4))
    student.users_at_once = 2
    items, scores = student.rank_items(users, width, exclude_bought)
    exact = student.score_items(users, exclude_bought)
    beams, _ = plain.rank_items(users, width, exclude_bought)
    for row, history in enumerate(users):
        counted = counter(rows, history, exclude_bought)
        similar = content_probabilities(history, 0.3, exclude_bought)
        truth = 0.25 * np.exp(item_scores(student.ranker or student.model, student.codes, history))
        truth = (truth + 0.4 * counted + 0.35 * similar) / np.exp(student.transition_memory.familiarity()) ** 0.4
        np.testing.assert_allclose(np.exp(exact[row]), truth, rtol=5e-3)
        union = set(beams[row].tolist()) - {-1}
        for proposed in (counted, similar):
            union |= {int(item) for item in np.argsort(-proposed, kind="stable")[:4] if proposed[item] > 0}
        listed = [item for item in items[row].tolist() if item >= 0]
        assert len(listed) == len(set(listed)) == min(width, len(union)) and set(listed) <= union
        best = np.sort([truth[item] for item in union])[::-1][: len(listed)]
        np.testing.assert_allclose(truth[listed], best, rtol=5e-3)
        np.testing.assert_allclose(np.exp(scores[row, : len(listed)]), best, rtol=5e-3)


@pytest.mark.parametrize("exclude_bought", [True, False])
@pytest.mark.parametrize("restricted", [False, True])
def test_some_items_at_a_time(monkeypatch, exclude_bought, restricted):
    """In large catalogues: the same lists, and scores but for rounding, as from all cosines at once."""
    student, users = (
        shop().with_transition_memory(memory_of(sequences(1, users=8), weight=0.4, top=4)),
        histories([6, 1, 3]),
    )
    student = student.with_content_memory(content_of(weight=0.35, temperature=0.3, top=6))
    if restricted:
        student.allowed = np.arange(N_ITEMS) % 3 > 0
    asked = np.tile([3, 0, -1, N_ITEMS - 1, 5], (len(users), 1))

    def results():
        pool = student.candidates(users, 5, exclude_bought, (0.3, 0.08))
        lists = [pool.ranked(MixtureWeights(0.4, 0.1, 0.35, temperature), 12) for temperature in (0.3, 0.08)]
        return pool, *(part for pair in lists for part in pair), student.ranking_scores(users, asked, exclude_bought)

    expected = results()
    monkeypatch.setattr(content_memory, "LARGE", 1)
    monkeypatch.setattr(content_memory, "BLOCK", 7)
    monkeypatch.setattr(ContentMemory, "cosines", None)  # nobody asks for all of them
    found = results()
    np.testing.assert_array_equal(found[0].items, expected[0].items)
    np.testing.assert_array_equal(found[0].by_content, expected[0].by_content)
    assert found[1].tolist() == expected[1].tolist() and found[3].tolist() == expected[3].tolist()
    for place in (2, 4, 5):
        np.testing.assert_allclose(found[place], expected[place], rtol=1e-5)
    for temperature, values in expected[0].content.items():
        np.testing.assert_allclose(found[0].content[temperature], values, rtol=1e-5, atol=1e-12)


def test_without_weight_it_is_the_counters_memory():
    counted = shop().with_transition_memory(memory_of(sequences(2), weight=0.4, discount=0.1))
    student, users = counted.with_content_memory(content_of(weight=0.0)), histories([6, 1, 3, 5])
    for with_content, without in zip(student.rank_items(users, 8), counted.rank_items(users, 8), strict=True):
        assert with_content.tolist() == without.tolist()
    assert student.score_items(users).tolist() == counted.score_items(users).tolist()
    assert counted.content_memory is None and "content_memory" not in counted.facts


def test_new_interactions_keep_the_content():
    student = shop().with_transition_memory(memory_of(sequences(2))).with_content_memory(content_of(weight=0.2))
    grown = student.with_transition_memory(student.transition_memory.grow([[1, 2, 3]], [1]))
    assert grown.content_memory is student.content_memory and "content_memory" in grown.facts
    assert student.with_transition_memory(None).content_memory is None


def test_save_and_load(tmp_path):
    student = shop().with_transition_memory(memory_of(sequences(3), weight=0.3, top=7, discount=0.1))
    student = student.with_content_memory(content_of(weight=0.25, temperature=0.12, top=5))
    users = histories([6, 1, 3])
    student.save_pretrained(tmp_path)
    loaded = Recommender.from_pretrained(tmp_path)
    for before, after in zip(student.rank_items(users, 8), loaded.rank_items(users, 8), strict=True):
        assert before.tolist() == after.tolist()
    assert loaded.facts == student.facts
    content = loaded.content_memory
    assert content.vectors.dtype == np.float16 and content.vectors.tolist() == student.content_memory.vectors.tolist()
    assert (content.weight, content.temperature, content.top, content.settings) == (0.25, 0.12, 5, READING)


def test_a_memory_of_two_is_saved_as_before(tmp_path):
    shop().with_transition_memory(memory_of(sequences(3), weight=0.3)).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "items.parquet",
        "memory.safetensors",
        "model.safetensors",
        "trie.safetensors",
    ]
    assert "content_memory" not in json.loads((tmp_path / "config.json").read_text())


def test_what_does_not_fit():
    with pytest.raises(UserError, match="needs a transition memory"):
        shop().with_content_memory(content_of())
    student = shop().with_transition_memory(memory_of(sequences(3)))
    short = ContentMemory(np.zeros((6, 2), np.float16), READING)
    with pytest.raises(UserError, match=f"The content memory is of 6 items, the student of {N_ITEMS}"):
        student.with_content_memory(short)


def test_candidates_come_once():
    # the texts of 0, 2 and 5 are alike; the counter knows 0 and 2 after 1
    vectors = np.array([[1.0, 0], [0, 1], [1, 0.1], [0, -1], [-1, 0], [1, 0.2]])
    content = ContentMemory.of(Content(vectors, READING), top=2)
    beams = np.array([[4, 0, -1]]), np.array([[-1.0, -2.0, -np.inf]])
    memory = memory_of([[1, 0], [1, 2], [1, 3]], 6, top=2)

    def score(users, items):
        return np.where(items < 0, -np.inf, -10.0 - items)

    users = np.array([[1]])
    proposals = candidates(beams, score, memory, users, True, content, (0.1, 0.5))
    cosines = content.cosines(users)[0]
    first, second = np.argsort(-cosines, kind="stable")[:2]
    further = [item for item in (first, second) if item not in (4, 0, 2)]
    assert proposals.items[0].tolist() == [4, 0, -1, 2, *further]
    assert proposals.by_content[0].tolist() == [False] * 4 + [True] * len(further) and further
    for temperature, similar in proposals.content.items():
        powers = np.exp(cosines / temperature)
        expected = np.where(proposals.items[0] < 0, 0, powers[proposals.items[0]] / powers.sum())
        np.testing.assert_allclose(similar[0], expected)
    assert proposals.without_content().items[0].tolist() == [4, 0, -1, 2] + [-1] * len(further)


def test_the_best_weights():
    """Each part is right about one of three users."""
    proposals = Candidates(
        items=np.array([[0, 1, 2]] * 3),
        log_probs=np.log([[0.6, 0.21, 0.19], [0.31, 0.28, 0.41], [0.41, 0.3, 0.29]]),  # no ties
        counter=np.array([[0.33, 0.37, 0.3], [0.0, 0.72, 0.28], [0.43, 0.31, 0.26]]),
        familiarity=np.zeros((3, 3)),
        content={
            0.1: np.array([[0.27, 0.34, 0.39], [0.29, 0.32, 0.39], [0.02, 0.11, 0.87]]),
            0.2: np.full((3, 3), 1 / 3),  # says nothing
        },
        by_content=np.array([[False, False, True]] * 3),
    )
    targets = np.array([0, 1, 2])
    best, values = best_weights(proposals, targets, k=1)
    assert values[best] == 1 and best.temperature == 0.1 and best.content_weight > 0
    assert max(value for tried, value in values.items() if not tried.content_weight) == pytest.approx(2 / 3)
    # every value is that of the lists
    for tried in (best, MixtureWeights(0.2, 0.1, 0.3, 0.2), MixtureWeights(0.0, 0.0, 1.0, 0.1), MixtureWeights(0.3)):
        lists, _ = proposals.ranked(tried, 1)
        assert values[tried] == pytest.approx((lists[:, 0] == targets).mean())
    assert all(tried.weight + tried.content_weight <= 1 + 1e-9 for tried in values)


def item_model():
    return ItemRecommender(model_of("sasrec", n_items=N_ITEMS), {"network": "sasrec", "exclude_bought": True})


@pytest.mark.parametrize("exclude_bought", [True, False])
def test_an_item_model_with_memories(exclude_bought, tmp_path):
    """All items ranked by the sum of three exact distributions; what is saved and loaded ranks alike."""
    plain, users, rows = item_model(), histories([6, 1, 3]), sequences(1, users=8)
    memory, content = memory_of(rows, weight=0.4, top=4, discount=0.4), content_of(weight=0.35, temperature=0.3, top=4)
    student = plain.with_transition_memory(memory).with_content_memory(content)
    log_probs, scores = plain.network_scores(users), student.score_items(users, exclude_bought)
    items, ranked = student.rank_items(users, 5, exclude_bought)
    for row, history in enumerate(users):
        bought = {int(item) for item in history if item >= 0}
        counted = memory.probabilities(users[row : row + 1], exclude_bought).toarray()[0]
        similar = content_probabilities(history, 0.3, exclude_bought)
        expected = 0.25 * np.exp(log_probs[row]) + 0.4 * counted + 0.35 * similar
        expected = np.log(expected) - 0.4 * memory.familiarity()
        np.testing.assert_allclose(scores[row], expected, atol=2e-3)  # float16 embeddings
        order = [item for item in np.argsort(-scores[row], kind="stable") if not exclude_bought or item not in bought]
        assert items[row].tolist() == order[:5]
        np.testing.assert_allclose(ranked[row], scores[row, order[:5]])
    asked = np.array([[0, 5, -1]] * len(users))
    np.testing.assert_allclose(
        student.ranking_scores(users, asked, exclude_bought)[:, :2], scores[:, [0, 5]], atol=1e-5
    )
    assert (plain.ranking_scores(users, asked, exclude_bought)[:, :2] == log_probs[:, [0, 5]]).all()
    student.save_pretrained(tmp_path)
    again = ItemRecommender.from_pretrained(tmp_path)
    np.testing.assert_allclose(again.score_items(users, exclude_bought), scores)
    assert again.transition_memory.weight == 0.4 and again.content_memory.temperature == 0.3
    assert again.with_transition_memory(None).score_items(users).tolist() == log_probs.tolist()
