import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import beam_search_naive

from distill.decoding.beam_search import beam_search
from distill.decoding.trie import FullTree, Trie


class Table:
    """A model without parameters: random log-probabilities for every user and prefix, drawn when first asked for.

    As a step it has to follow parents and codes by itself, so a wrong parent shows as wrong numbers.
    """

    def __init__(self, seed, batch, size):
        self.seed, self.batch, self.size = seed, batch, size
        self.beams = None

    def log_prob(self, user, prefix):
        rng = np.random.default_rng([self.seed, user, len(prefix), *prefix])
        logits = 2 * rng.normal(size=self.size)
        return (logits - np.logaddexp.reduce(logits)).tolist()

    def __call__(self, level, parents, codes):
        if level == 0:
            assert parents is None and codes is None
            self.beams = [[()] for _ in range(self.batch)]
        else:
            self.beams = [
                [(*before[parent], code) for parent, code in zip(up, new, strict=True)]
                for before, up, new in zip(self.beams, parents.tolist(), codes.tolist(), strict=True)
            ]
        assert all(len(prefix) == level for row in self.beams for prefix in row)
        rows = [[self.log_prob(user, prefix) for prefix in row] for user, row in enumerate(self.beams)]
        return torch.tensor(rows, dtype=torch.float64)


def random_codes(seed, n, levels, size):
    return np.random.default_rng(seed).integers(0, size, (n, levels))


def distinct(codes):
    return sorted({tuple(row) for row in codes.tolist()})


def check(beams, user, expected, valid):
    """The beams of a user are the expected (ID, score) pairs, then nothing."""
    n = len(expected)
    assert [tuple(row) for row in beams.codes[user, :n].tolist()] == [codes for codes, _ in expected]
    np.testing.assert_allclose(beams.scores[user, :n], [score for _, score in expected], atol=1e-5)
    assert [valid[leaf] for leaf in beams.leaves[user, :n].tolist()] == [codes for codes, _ in expected]
    assert (beams.scores[user, n:] == -torch.inf).all()
    assert (beams.leaves[user, n:] == -1).all()


@given(st.integers(0, 10**6), st.integers(1, 25), st.integers(1, 4), st.integers(2, 5), st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_wide_beams_are_exact(seed, n, levels, size, extra):
    codes = random_codes(seed, n, levels, size)
    valid = distinct(codes)
    step = Table(seed, 2, size)
    beams = beam_search(step, Trie.build(codes, size), 2, len(valid) + extra)
    for user in range(2):
        expected = beam_search_naive.best_ids(valid, lambda prefix, user=user: step.log_prob(user, prefix))
        check(beams, user, expected, valid)


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 4), st.integers(2, 5), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_narrow_beams_equal_the_naive_search(seed, n, levels, size, width):
    codes = random_codes(seed, n, levels, size)
    valid = distinct(codes)
    step = Table(seed, 3, size)
    beams = beam_search(step, Trie.build(codes, size), 3, width)
    for user in range(3):
        expected = beam_search_naive.beam_search(
            valid, lambda prefix, user=user: step.log_prob(user, prefix), levels, width
        )
        check(beams, user, expected, valid)


@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_closed_leaves(seed, n, width, length):
    codes = random_codes(seed, n, 3, 3)
    valid = distinct(codes)
    tree, step = Trie.build(codes, 3), Table(seed, 2, 3)
    histories = np.random.default_rng(seed + 1).integers(-1, n, (2, length))
    closed = tree.closed_leaves(torch.from_numpy(histories))
    for size in (width, len(valid) + 1):
        beams = beam_search(step, tree, 2, size, closed)
        for user in range(2):
            shut = {valid[leaf] for leaf in closed[user].tolist() if leaf >= 0}

            def log_prob(prefix, user=user):
                return step.log_prob(user, prefix)

            expected = beam_search_naive.beam_search(valid, log_prob, 3, size, shut)
            if size > len(valid):
                assert expected == beam_search_naive.best_ids(valid, log_prob, shut)
            check(beams, user, expected, valid)


def test_closed_leaves_lose_no_width():
    codes = np.array([[0, code] for code in range(6)])  # one node: only the last top-k chooses
    tree, step = Trie.build(codes, 6), Table(0, 1, 6)
    for closed in range(4):
        best = beam_search(step, tree, 1, 6).leaves[0, :closed]
        shut = torch.cat([torch.full((1,), -1), best]).sort().values[None]
        beams = beam_search(step, tree, 1, 2, shut)
        assert (beams.leaves >= 0).all()
        assert beams.leaves[0].tolist() == beam_search(step, tree, 1, 6).leaves[0, closed : closed + 2].tolist()


def test_a_rare_child_is_not_lost_to_an_invalid_one():
    """Masks after the top-k would drop the only valid child: it is the least likely of all codewords."""
    codes = np.array([[0, 3], [1, 3]])

    def step(level, parents, codes):
        log_probs = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
        return log_probs.expand(1, 1 if parents is None else parents.shape[1], 4)

    beams = beam_search(step, Trie.build(codes, 4), 1, 2)
    assert beams.codes.tolist() == [[[0, 3], [1, 3]]]
    np.testing.assert_allclose(beams.scores.exp(), [[0.5 * 0.05, 0.3 * 0.05]], rtol=1e-5)


def test_impossible_ids_are_none():
    """A codeword of probability zero is no recommendation."""

    def step(level, parents, codes):
        return torch.tensor([0.0, -torch.inf]).expand(1, 1 if parents is None else parents.shape[1], 2)

    beams = beam_search(step, Trie.build(np.array([[0, 0], [0, 1], [1, 0]]), 2), 1, 3)
    assert beams.leaves.tolist() == [[0, -1, -1]]


@pytest.mark.parametrize("width", [1, 4, 27])
def test_without_the_trie(width):
    everything = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    step = Table(1, 2, 3)
    beams = beam_search(step, FullTree(3, 3), 2, width)
    for user in range(2):
        expected = beam_search_naive.beam_search(
            everything, lambda prefix, user=user: step.log_prob(user, prefix), 3, width
        )
        check(beams, user, expected, everything)
