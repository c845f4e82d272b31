import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference import quantisers_naive as naive

from distill.semantic_ids import quality, quantisers

CODES = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [1, 1], [2, 2]])


def test_use_by_hand():
    first, second = quality.usage(CODES, 4)
    assert first["used"] == 3 and second["used"] == 3
    assert first["perplexity"] == pytest.approx(np.exp(-(0.5 * np.log(0.5) + np.log(1 / 3) / 3 + np.log(1 / 6) / 6)))
    assert quality.usage(np.arange(8)[:, None], 8)[0]["perplexity"] == pytest.approx(8)


def test_prefixes_and_sharing_by_hand():
    prefix = quality.prefixes(CODES)
    assert prefix.T.tolist() == [[0, 0, 0, 1, 1, 2], [0, 0, 1, 2, 3, 4]]
    first, second = quality.sharing(prefix)
    # sizes 3, 2, 1: one item alone, five in groups of 2 to 4
    assert first == {"prefixes": 3, "largest": 3, "shares": pytest.approx([1 / 6, 5 / 6, 0, 0, 0])}
    assert second == {"prefixes": 5, "largest": 2, "shares": pytest.approx([4 / 6, 2 / 6, 0, 0, 0])}


def test_purity_by_hand():
    prefix = quality.prefixes(CODES)
    found = quality.purity(prefix, ["x", "x", "y", "y", "", "x"])
    # of those known, only 0, 1, 2 share a first code: two of them are x; of pairs of codes, 0 and 1, both x
    assert found["categories"] == 2 and found["purity"] == pytest.approx([2 / 3, 1.0])
    assert quality.purity(prefix, ["x"] * 6) is None and quality.purity(prefix, [""] * 6) is None


@settings(max_examples=40, deadline=None)
@given(arrays(np.int64, (12, 2), elements=st.integers(0, 3)), arrays(np.int64, 12, elements=st.integers(0, 3)))
def test_purity_and_chance_equal_the_naive_reference(codes, label):
    prefix = quality.prefixes(codes)
    weight = np.random.default_rng(0).uniform(0.1, 1, 12)
    found = quality.purity(prefix, [f"c{one}" for one in label])
    for level in range(2):
        if found:
            expected = naive.purity(prefix[:, level].tolist(), label.tolist())
            assert found["purity"][level] == (None if expected is None else pytest.approx(expected))
        assert quality._chance(prefix[:, level], weight) == pytest.approx(naive.chance(prefix[:, level], weight))


def test_bought_together_by_hand():
    # pairs within 2 steps: 0-1, 0-2, 1-2, 1-3, 2-3 of the first user; 4-4 is one item, 4-5 twice of the second
    values, offsets = np.array([0, 1, 2, 3, 4, 4, 5]), np.array([0, 4, 7])
    prefix = quality.prefixes(CODES)
    found = quality.co_purchase(prefix, values, offsets, window=2)
    pairs = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (4, 5), (4, 5)]
    assert found["pairs"] == 7
    assert found["share"] == pytest.approx([naive.share_of_pairs(column, pairs) for column in prefix.T])
    weight = np.bincount(np.array(pairs).ravel(), minlength=6)
    assert found["chance"] == pytest.approx([naive.chance(column, weight) for column in prefix.T])
    assert quality.co_purchase(prefix, np.array([1, 1, 1]), np.array([0, 3])) is None


def test_neighbours_by_hand():
    x = np.array([[0.0], [0.1], [5.0], [5.1]], dtype=np.float32)
    codes = np.array([[0, 0], [0, 1], [1, 0], [2, 0]])
    found = quality.neighbours(quality.prefixes(codes), x, k=1)
    assert found["share"] == [0.5, 0.0]  # 0 and 1 are each other's nearest and share a first code, 2 and 3 do not
    assert found["chance"] == pytest.approx([1 / 6, 0])
    equal = quality.neighbours(quality.prefixes(codes), np.zeros((4, 1), np.float32), k=10)
    assert equal["k"] == 3 and equal["share"][0] == pytest.approx(1 / 6)  # all others, each once


def test_reconstruction_adds_up():
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    model = quantisers.fit("rkmeans", x, 3, 8)
    codes = model.encode(x)
    found = quality.reconstruction(model, x, codes)
    variance = np.square(x - x.mean(0)).sum()
    assert found["reconstruction_error"] == pytest.approx(np.square(x - model.decode(codes)).sum() / variance, rel=1e-4)
    assert sum(found["explained_per_level"]) == pytest.approx(1 - found["reconstruction_error"])
    first = 1 - np.square(x - model.decode(codes[:, :1])).sum() / variance
    assert found["explained_per_level"][0] == pytest.approx(first, rel=1e-4)
    assert found["mean_squared_error"] == pytest.approx(np.square(x - model.decode(codes)).mean(), rel=1e-4)
