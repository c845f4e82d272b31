import numpy as np
import pytest
import scipy.sparse as sp
from reference import quantisers_naive as naive

from distill.semantic_ids import cooccurrence

# two groups of items that are never bought with each other's; item 6 is never bought
SEQUENCES = [[0, 1, 2], [1, 2, 0], [3, 4], [4, 5, 3], [0, 2], [5, 4]]
VALUES = np.concatenate(SEQUENCES)
OFFSETS = np.concatenate([[0], np.cumsum([len(one) for one in SEQUENCES])])


def test_ppmi_equals_the_definition():
    counts = np.random.default_rng(0).integers(0, 4, (7, 7)).astype(float)
    counts += counts.T
    found = cooccurrence.ppmi(sp.csr_array(counts)).toarray()
    np.testing.assert_allclose(found, naive.ppmi(counts), atol=1e-12)


def test_what_is_bought_together_lies_together():
    found = cooccurrence.embed(VALUES, OFFSETS, 7, dim=2, window=3, seed=0)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 1, 1, 1, 0], atol=1e-5)
    cosines = found @ found.T
    assert cosines[:3, :3].min() > 0.8 and cosines[3:6, 3:6].min() > 0.8
    assert np.abs(cosines[:3, 3:6]).max() < 0.2


def test_the_window_ends_company():
    near = cooccurrence.embed(np.array([0, 1, 2]), np.array([0, 3]), 3, dim=3, window=1, seed=0)
    far = cooccurrence.embed(np.array([0, 1, 2]), np.array([0, 3]), 3, dim=3, window=2, seed=0)
    assert not np.allclose(near @ near.T, far @ far.T)


def test_concatenation_shares_the_variance_by_weight():
    rng = np.random.default_rng(1)
    text, company = rng.normal(size=(50, 6)) * 9, rng.normal(size=(50, 3))
    found, factor = cooccurrence.join(text, company, "concat", 0.3)
    assert found.shape == (50, 9) and found.dtype == np.float32
    assert found[:, :6].var(0).sum() == pytest.approx(0.7, rel=1e-5)
    assert found[:, 6:].var(0).sum() == pytest.approx(0.3, rel=1e-5)
    np.testing.assert_allclose(found[:, :6], text * factor, rtol=1e-5)


@pytest.mark.parametrize("how", ["concat", "average"])
def test_items_without_company_are_their_text(how):
    rng = np.random.default_rng(2)
    text, company = rng.normal(size=(30, 6)), rng.normal(size=(30, 3))
    company[[4, 9]] = 0
    found, factor = cooccurrence.join(text, company, how, 0.5)
    np.testing.assert_allclose(found[[4, 9], :6], text[[4, 9]] * factor, rtol=1e-5)
    np.testing.assert_array_equal(found[[4, 9], 6:], 0)


def test_the_average_turns_company_towards_the_text():
    text = np.random.default_rng(3).normal(size=(40, 4))
    text -= text.mean(0)
    turned = text @ np.linalg.qr(np.random.default_rng(4).normal(size=(4, 4)))[0]  # the same, seen from elsewhere
    found, _ = cooccurrence.join(text, turned, "average", 0.5)
    spread = np.sqrt(text.var(0).sum())
    np.testing.assert_allclose(found, text / spread * 2 * np.sqrt(0.5), atol=1e-5)


@pytest.mark.parametrize("how", ["concat", "average"])
def test_where_nothing_is_bought_together_the_text_stands_alone(how):
    company = cooccurrence.embed(np.array([0, 1, 2]), np.array([0, 1, 2, 3]), 3, dim=2, window=5, seed=0)
    assert company.shape == (3, 2) and not company.any()
    text = np.random.default_rng(5).normal(size=(3, 4))
    found, factor = cooccurrence.join(text, company, how, 0.5)
    np.testing.assert_allclose(found[:, :4], text * factor, rtol=1e-5)
    assert not found[:, 4:].any()
