"""Top-k of item scores against a sort in plain Python."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distill.ranking import mask_history, scores_of, top_by_products, top_items

INF = np.inf


def naive_top(row, k, above):
    ranked = sorted((item for item, score in enumerate(row) if score > above), key=lambda item: (-row[item], item))
    k = min(k, len(row))
    return (ranked + [-1] * k)[:k]


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        (0.0, [[1, 3, 0], [2, -1, -1]]),
        (-INF, [[1, 3, 0], [2, 1, 3]]),
        (2.0, [[1, 3, -1], [-1, -1, -1]]),
    ],
)
def test_by_hand(above, expected):
    scores = np.array([[2.0, 3.0, -INF, 3.0], [-INF, 0.0, 2.0, -1.0]])
    assert top_items(scores, 3, above).tolist() == expected


@given(
    scores=arrays(
        float, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.sampled_from([-INF, -1, 0, 1, 2])
    ),
    k=st.integers(1, 12),
    above=st.sampled_from([-INF, -1.0, 0.0]),
)
@settings(max_examples=150, deadline=None)
def test_ties_by_item_number_whatever_the_limit(scores, k, above):
    assert top_items(scores, k, above).tolist() == [naive_top(row, k, above) for row in scores.tolist()]


@given(
    scores=arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.sampled_from([0, 0, 0.5, 1, 2])),
    k=st.integers(1, 12),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_sparse_scores_are_ranked_like_dense_ones(scores, k, seed):
    rows, columns = np.nonzero(scores)
    order = np.random.default_rng(seed).permutation(len(rows))  # entries of a row in any order
    order = order[np.argsort(rows[order], kind="stable")]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(scores)))])
    sparse = sp.csr_array((scores[rows, columns][order], columns[order], offsets), shape=scores.shape)
    assert top_items(sparse, k).tolist() == top_items(scores, k).tolist()


def test_an_explicit_zero_is_no_recommendation():
    scores = sp.csr_array((np.array([0.0, 1.0]), np.array([1, 2]), np.array([0, 2])), shape=(1, 4))
    assert top_items(scores, 3).tolist() == [[2, -1, -1]]


def test_scores_of_items():
    scores = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)
    items = np.array([[2, 0], [1, -1]])
    assert scores_of(scores, items).tolist() == [[3, 1], [5, -INF]]
    assert scores_of(scores, items, missing=0.0).tolist() == [[3, 1], [5, 0]]
    assert scores_of(scores, items).dtype == np.float32


def test_mask_history():
    scores = np.ones((2, 3))
    mask_history(scores, np.array([[0, 2], [1, -1]]), -INF)
    assert scores.tolist() == [[-INF, 1, -INF], [1, -INF, 1]]


@pytest.mark.parametrize("block", [1, 3, 7, 100])
@pytest.mark.parametrize("k", [1, 4, 30])
def test_items_by_products_are_those_of_all_scores(k, block):
    """Small whole numbers: products are exact, and many are equal."""
    rng = np.random.default_rng(k)
    queries, vectors = (rng.integers(-2, 3, (rows, 3)).astype(np.float32) for rows in (9, 25))
    queries[0] = 0  # all items are equal
    excluded = np.where(rng.random((9, 6)) < 0.7, rng.integers(0, 25, (9, 6)), -1)
    excluded[1] = -1
    for left_out in (None, excluded):
        scores = queries @ vectors.T
        if left_out is not None:
            mask_history(scores, left_out, -INF)
        expected = top_items(scores, k, -INF)
        np.testing.assert_array_equal(top_by_products(queries, vectors, k, left_out, block), expected)


def test_items_by_products_where_all_are_excluded():
    result = top_by_products(np.ones((1, 2), np.float32), np.ones((3, 2), np.float32), 2, np.array([[2, 0, 1]]), 2)
    assert result.tolist() == [[-1, -1]]
