"""The tree of a search's beams against teacher forcing of every item."""

import numpy as np
import pytest
import torch
from unit.test_recommender import LEVELS, N_ITEMS, shop

from student.models import BACKBONES
from student.restriction import restrict
from student.serving.beam_tree import beam_tree

HISTORY = np.array([4, 9, 3])


@torch.no_grad()
def prefix_probabilities(student):
    """Probability of each prefix of each item's ID, and the items of each whole ID; one item at a time."""
    probabilities, items = {}, {}
    history = student.codes[torch.from_numpy(HISTORY)][None]
    for item, row in enumerate(student.codes):
        log_probs = student.model.log_probs(student.model.encode(history), row[None, None], "level")[0, 0]
        codes = tuple(row.tolist())
        for length in range(1, LEVELS + 1):
            chosen = [log_probs[level, codes[level]].item() for level in range(length)]
            probabilities[codes[:length]] = float(np.exp(sum(chosen)))
        items.setdefault(codes, []).append(item)
    return probabilities, items


@pytest.mark.parametrize("backbone", BACKBONES)
def test_wide_beams_keep_every_prefix(backbone):
    student = shop(backbone)
    probabilities, items = prefix_probabilities(student)
    levels = beam_tree(student, HISTORY, N_ITEMS, False)
    assert len(levels) == LEVELS
    for length, level in enumerate(levels, 1):
        actual = {prefix.codewords: prefix.probability for prefix in level}
        expected = {prefix: value for prefix, value in probabilities.items() if len(prefix) == length}
        assert actual == pytest.approx(expected, rel=1e-3)
        assert list(actual.values()) == sorted(actual.values(), reverse=True)
    assert {prefix.codewords: list(prefix.items) for prefix in levels[-1]} == items


def test_a_softmax_over_the_tries_children_sums_to_one_on_each_level():
    for level in beam_tree(shop(scope="trie"), HISTORY, N_ITEMS, False):
        assert sum(prefix.probability for prefix in level) == pytest.approx(1)


def test_narrow_beams_keep_the_likeliest_that_continue_kept_ones():
    student, width = shop(), 2
    probabilities, _ = prefix_probabilities(student)
    kept = [()]
    for length, level in enumerate(beam_tree(student, HISTORY, width, False), 1):
        candidates = [prefix for prefix in probabilities if len(prefix) == length and prefix[:-1] in kept]
        kept = sorted(candidates, key=probabilities.get, reverse=True)[:width]
        assert [prefix.codewords for prefix in level] == kept


def test_leaves_are_the_list_and_leave_out_what_was_bought():
    student = shop()  # items 3 and 7 share an ID, and 3 was bought
    items, scores = student.rank_items(HISTORY[None], 8, True)
    last = beam_tree(student, HISTORY, 8, True)[-1]
    assert [item for prefix in last for item in prefix.items][:8] == items[0].tolist()
    by_item = {item: np.log(prefix.probability) for prefix in last for item in prefix.items}
    np.testing.assert_allclose([by_item[item] for item in items[0]], scores[0], atol=1e-4)
    every_leaf = beam_tree(student, HISTORY, N_ITEMS, True)[-1]
    assert {item for prefix in every_leaf for item in prefix.items} == set(range(N_ITEMS)) - {3, 4, 9}


def test_a_restricted_search_keeps_prefixes_of_allowed_items_only():
    student = shop()
    allowed = np.array([2, 11, 25])
    levels = beam_tree(restrict(student, allowed), HISTORY, 20, True)
    codes = [tuple(row) for row in student.codes[allowed].tolist()]
    for length, level in enumerate(levels, 1):
        assert {prefix.codewords for prefix in level} == {row[:length] for row in codes}
