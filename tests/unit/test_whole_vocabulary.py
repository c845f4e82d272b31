"""The search over all tokens against a search written with lists; which tokens are items; students on it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import beam_search_naive
from unit.test_beam_search import Table
from unit.test_recommender import LEVELS, SIZE, histories, shop

from distill.decoding.trie import Trie
from distill.decoding.whole_vocabulary import Vocabulary, search_tokens
from student.models import BACKBONES

TOKENS = LEVELS * SIZE


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 6), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_the_search_equals_the_naive_one(seed, levels, size, width):
    """All sequences are valid to the naive search; a step names its likeliest tokens in any number above the width."""
    step, k = Table(seed, 2, size), min(size, width + seed % 3)
    sequences, scores = search_tokens(lambda *state: step(*state).topk(k), levels, 2, width)
    everything = [tuple(row) for row in np.stack(np.unravel_index(np.arange(size**levels), (size,) * levels), 1)]
    for user in range(2):
        expected = beam_search_naive.beam_search(
            everything, lambda prefix, user=user: step.log_prob(user, prefix), levels, width
        )
        assert [tuple(row) for row in sequences[user].tolist()] == [codes for codes, _ in expected]
        np.testing.assert_allclose(scores[user], [score for _, score in expected], atol=1e-5)


def test_which_tokens_are_items():
    """Two levels of three codewords among ten tokens; items are the IDs (0, 1), (2, 2) and again (2, 2)."""
    trie = Trie.build(np.array([[0, 1], [2, 2], [2, 2]]), 3)
    token_of = torch.tensor([[4, 5, 6], [7, 8, 1]])  # the last codeword of the second level is token 1
    gaps = torch.tensor([[False, True, False], [False, False, False]])
    vocabulary = Vocabulary(token_of, 10, gaps)
    assert vocabulary.codeword_of.tolist() == [-1, 5, -1, -1, 0, -1, 2, 3, 4, -1]
    sequences = torch.tensor([
        [4, 8], [6, 1],  # the two IDs
        [4, 7],  # codewords that no item has
        [8, 4], [4, 4], [8, 8],  # codewords of another level
        [5, 8],  # a codeword that the vocabulary lacks
        [0, 8], [4, 9],  # words
    ])  # fmt: skip
    assert vocabulary.find_items(sequences, trie).tolist() == [0, 1, -1, -1, -1, -1, -1, -1, -1]


def naive_items(student, history, width):
    """Beam search over all codewords at each level, every prefix scored by teacher forcing from the start."""
    encoded = student.model.encode(student.codes[torch.from_numpy(history[history >= 0])][None])
    first = torch.arange(LEVELS) * SIZE

    def log_prob(prefix):
        tokens = torch.tensor([*prefix, *[0] * (LEVELS - len(prefix))])
        return student.model.log_probs(encoded, (tokens - first)[None, None], "all")[0, 0, len(prefix)].tolist()

    grid = np.stack(np.unravel_index(np.arange(TOKENS**LEVELS), (TOKENS,) * LEVELS), 1)
    beams = beam_search_naive.beam_search([tuple(row) for row in grid.tolist()], log_prob, LEVELS, width)
    numbers = (student.codes + first).tolist()
    items = {tuple(row): item for item, row in reversed([*enumerate(numbers)])}  # of items behind one ID, the first
    return [items.get(sequence, -1) for sequence, _ in beams]


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_students_search_the_codewords_of_all_levels(backbone):
    student, users = shop(backbone, scope="all"), histories([6, 1, 3])
    items = student.search_whole_vocabulary(users, 9)
    assert items.shape == (3, 9)
    for row, history in enumerate(users):
        assert items[row].tolist() == naive_items(student, history, 9)
    wide = student.search_whole_vocabulary(users, TOKENS**LEVELS)  # all sequences: every ID once, all else invalid
    firsts = student.trie.first_item(torch.arange(student.trie.n_leaves)).tolist()
    for row in wide:
        assert sorted(row[row >= 0].tolist()) == sorted(firsts)


def test_students_of_one_levels_softmax_have_no_such_search():
    assert shop(scope="level").search_whole_vocabulary(histories([2]), 4) is None
