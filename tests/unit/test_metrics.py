import math
from itertools import pairwise

import numpy as np
import pytest

from distill import metrics

LISTS = np.array([[3, 1, 2], [4, 0, -1], [5, 6, 7], [-1, -1, -1]])
TARGETS = np.array([3, 0, 9, 1])


def test_by_hand():
    ranks = metrics.hit_ranks(LISTS, TARGETS)
    assert ranks[:2].tolist() == [0, 1] and (ranks[2:] >= 3).all()
    assert metrics.recall(ranks, 1).tolist() == [1, 0, 0, 0]
    assert metrics.recall(ranks, 2).tolist() == [1, 1, 0, 0]
    assert metrics.recall(ranks, 3).tolist() == [1, 1, 0, 0]
    assert metrics.ndcg(ranks, 1).tolist() == [1, 0, 0, 0]
    assert metrics.ndcg(ranks, 3).tolist() == pytest.approx([1, 1 / math.log2(3), 0, 0])


def test_the_edge_of_k():
    ranks = metrics.hit_ranks(np.arange(12)[None].repeat(12, 0), np.arange(12))
    assert ranks.tolist() == list(range(12))
    assert metrics.recall(ranks, 10).tolist() == [1] * 10 + [0] * 2
    gains = metrics.ndcg(ranks, 10)
    assert gains[9] == pytest.approx(1 / math.log2(11)) and gains[10] == 0
    assert all(a > b for a, b in pairwise(gains[:11]))


@pytest.mark.parametrize("k", [1, 5, 10])
def test_equals_ranx(k):
    """An independent library's numbers, user by user."""
    from ranx import Qrels, Run, evaluate

    rng = np.random.default_rng(0)
    users, items = 100, 20
    lists = np.stack([rng.permutation(items)[:10] for _ in range(users)])
    targets = rng.integers(items, size=users)
    qrels = Qrels({f"u{u}": {f"i{targets[u]}": 1} for u in range(users)})
    run = Run({f"u{u}": {f"i{item}": 10.0 - place for place, item in enumerate(lists[u])} for u in range(users)})
    evaluate(qrels, run, [f"recall@{k}", f"ndcg@{k}"])
    ranks = metrics.hit_ranks(lists, targets)
    for name, values in (("recall", metrics.recall(ranks, k)), ("ndcg", metrics.ndcg(ranks, k))):
        found = run.scores[f"{name}@{k}"]
        np.testing.assert_allclose(values, [found[f"u{u}"] for u in range(users)], atol=1e-9)
        assert 0 < values.mean() < 1


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_diversity_by_definition(k):
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(20, 4))
    lists = np.stack([rng.permutation(20)[:6] for _ in range(7)])
    expected = []
    for row in lists:
        total = sum(1 - cosine(embeddings[row[i]], embeddings[row[j]]) for i in range(k) for j in range(i, k))
        expected.append(2 / (k * (k + 1)) * total)
    np.testing.assert_allclose(metrics.diversity(lists, embeddings, k), expected, atol=1e-12)


def test_diversity_by_hand():
    embeddings = np.array([[1.0, 0], [0, 2], [-3, 0]])
    lists = np.array([[0, 1, 2], [0, 0, 0], [0, -1, 2], [1, -1, -1]])
    # cosines: 0·1 = 0, 0·2 = −1, 1·2 = 0
    expected = [2 / 12 * (1 + 2 + 1), 0, 2 / 12 * 2, 0]
    np.testing.assert_allclose(metrics.diversity(lists, embeddings, 3), expected, atol=1e-12)


def test_coverage_by_hand():
    lists = np.array([[1, 2, 3], [1, 2, 3], [1, -1, -1], [1, 2, 3]])
    teacher = np.array([[3, 1, 9], [4, 5, 6], [2, 1, -1], [-1, -1, -1]])
    assert metrics.coverage(lists, teacher).tolist() == pytest.approx([2 / 3, 0, 1 / 2, 0])


def test_kl_by_hand():
    truth = np.array([[0.5, 0.5, 0], [1.0, 0, 0], [0.5, 0.25, 0.25]])
    model = np.array([[0.25, 0.5, 0.25], [1.0, 0, 0], [0.5, 0.25, 0.25]])
    with np.errstate(divide="ignore"):
        values = metrics.kl_to_truth(truth, np.log(model))
    assert values.tolist() == pytest.approx([0.5 * math.log(2), 0, 0])


def test_kl_to_a_model_that_excludes_a_possible_item():
    values = metrics.kl_to_truth(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([[0.0, -np.inf], [-np.inf, 0.0]]))
    assert values.tolist() == [np.inf, 0]


def test_mrr_by_hand():
    ranks = metrics.hit_ranks(LISTS, TARGETS)
    assert metrics.mrr(ranks, 3).tolist() == [1, 1 / 2, 0, 0]
    assert metrics.mrr(ranks, 1).tolist() == [1, 0, 0, 0]


def longest_common(a, b):
    """From the definition: drop the first of either, or both if equal."""
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))


def test_coordination():
    rng = np.random.default_rng(3)
    lists = np.stack([rng.permutation(7)[:5] for _ in range(40)])
    teacher = np.stack([rng.permutation(7)[:4] for _ in range(40)])
    expected = [longest_common(a, b) / 4 for a, b in zip(lists.tolist(), teacher.tolist(), strict=True)]
    assert metrics.coordination(lists, teacher).tolist() == pytest.approx(expected)
    assert len(set(expected)) > 2


def test_coordination_by_hand():
    lists = np.array([[1, 2, 3], [3, 2, 1], [1, -1, -1], [-1, -1, -1], [1, 2, 3]])
    teacher = np.array([[1, 2, 3], [1, 2, 3], [2, 1, -1], [1, 2, -1], [-1, -1, -1]])
    assert metrics.coordination(lists, teacher).tolist() == pytest.approx([1, 1 / 3, 1 / 2, 0, 0])


def test_catalogue_and_gini_by_hand():
    lists = np.array([[0, 1], [0, -1], [0, 1]])
    assert metrics.catalogue_coverage(lists, 4) == 0.5
    # counts 3 2 0 0: mean absolute difference of all pairs over twice the mean
    counts = [3, 2, 0, 0]
    spread = sum(abs(a - b) for a in counts for b in counts) / 16
    assert metrics.gini(lists, 4) == pytest.approx(spread / (2 * 5 / 4))
    assert metrics.gini(np.array([[0, 1], [2, 3]]), 4) == pytest.approx(0)
    assert metrics.gini(np.array([[-1]]), 4) == 0


def test_novelty_by_hand():
    counts = np.array([3, 0, 1, 0])  # with one added: shares 1/2, 1/8, 1/4, 1/8
    lists = np.array([[0, 1], [2, -1], [-1, -1]])
    assert metrics.novelty(lists, counts).tolist() == pytest.approx([2, 2, 0])


def test_popularity_groups_by_hand():
    counts = np.array([1, 10, 0, 5, 4, 1, 1, 1, 1, 1])  # 25 interactions, five a group
    groups = metrics.popularity_groups(counts)
    assert groups.tolist() == [
        3,
        1,
        -1,
        2,
        3,
        4,
        4,
        4,
        4,
        4,
    ]  # by the middle of their interactions: 5, 12.5, 17, 19.5 …
    assert metrics.popularity_groups(np.zeros(3)).tolist() == [-1] * 3
    even = metrics.popularity_groups(np.ones(100))
    assert np.bincount(even).tolist() == [20] * 5


def test_intervals():
    rng = np.random.default_rng(0)
    values = rng.normal(2.0, 3.0, 900)
    low, high = metrics.interval(values)
    error = values.std(ddof=1) / 30  # what theory gives for a mean of many
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.03)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.03)
    assert metrics.interval(np.ones(5)) == (1.0, 1.0)


def test_pairs():
    rng = np.random.default_rng(0)
    users = rng.normal(0, 5, 400)  # some users are easy for both: only a paired test sees the difference
    a, b = users + 0.3 + rng.normal(0, 1, 400), users + rng.normal(0, 1, 400)
    found = metrics.paired(a, b)
    assert found["difference"] == pytest.approx((a - b).mean()) and 0 < found["low"] < found["high"]
    assert found["p"] < 0.01
    swapped = metrics.paired(b, a)
    assert swapped["difference"] == -found["difference"] and swapped["p"] == pytest.approx(found["p"])
    assert metrics.paired(a, a) == {"difference": 0, "low": 0, "high": 0, "p": 1}
    assert metrics.paired(np.ones(5), np.full(5, 0.5)) == {"difference": 0.5, "low": 0.5, "high": 0.5, "p": 1 / 16}
    assert metrics.paired(np.ones(1), np.zeros(1))["p"] == 1  # one user is no evidence
