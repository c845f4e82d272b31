"""Lists of some items only are the full ranking without the others, however far behind these items are."""

import numpy as np
import pytest
from unit.test_recommender import N_ITEMS, histories, shop

from distill.baselines.content import ContentSettings
from distill.baselines.counting import TransitionSettings, count_transitions
from student.content_memory import ContentMemory
from student.item_recommender import ItemRecommender
from student.models.item_models import ITEM_MODELS
from student.restriction import rank_within
from student.transition_memory import TransitionMemory


def with_memories(student):
    rng = np.random.default_rng(0)
    values = rng.integers(0, N_ITEMS, 300)
    counts = count_transitions(values, np.arange(0, 301, 10), N_ITEMS, 2, 0.5)
    student = student.with_transition_memory(TransitionMemory(counts, TransitionSettings(), 0.3, 5, 0.1))
    vectors = rng.normal(size=(N_ITEMS, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return student.with_content_memory(ContentMemory(vectors.astype(np.float16), ContentSettings(), weight=0.2, top=5))


def item_model():
    network, config = ITEM_MODELS["sasrec"]
    return ItemRecommender(network(config(N_ITEMS, dim=8, max_history=6)).eval(), {"network": "sasrec"})


STUDENTS = {
    "codewords": shop,
    "over children": lambda: shop(scope="trie"),  # of the whole catalogue's trie, not of the restricted one
    "ranker": lambda: shop(ranker=True),
    "items": item_model,
}
ALLOWED = np.array([2, 3, 7, 11, 12, 25, 29])  # 3 and 7 share an ID


@pytest.mark.parametrize("memories", [False, True])
@pytest.mark.parametrize("exclude_bought", [False, True])
@pytest.mark.parametrize("name", STUDENTS)
def test_restricted_lists_are_the_full_ranking_without_the_others(name, exclude_bought, memories):
    student, rows = STUDENTS[name](), histories([6, 3, 1])
    rows[1, 0] = 7  # an allowed item that was bought
    student = with_memories(student) if memories else student
    full, full_scores = student.rank_items(rows, N_ITEMS, exclude_bought)
    items, scores = rank_within(student, rows, len(ALLOWED), exclude_bought, ALLOWED)
    for row in range(len(rows)):
        places = [place for place in range(full.shape[1]) if full[row, place] in ALLOWED]
        expected = dict(zip(full[row, places].tolist(), full_scores[row, places], strict=True))
        listed = [item for item in items[row].tolist() if item >= 0]
        assert set(listed) == expected.keys()
        assert len(listed) >= 4
        np.testing.assert_allclose(
            [expected[item] for item in listed], scores[row, : len(listed)], rtol=1e-4, atol=1e-5
        )
        assert (np.diff(scores[row, : len(listed)]) <= 0).all()


def test_an_item_that_no_beam_of_the_full_search_reaches_is_listed():
    student, rows = shop(shared=False), histories([4])
    last = student.rank_items(rows, N_ITEMS, False)[0][0, -1]
    assert last not in student.rank_items(rows, 3, False)[0]
    assert rank_within(student, rows, 3, False, np.array([last]))[0][0].tolist() == [last, -1, -1]
