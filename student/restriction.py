"""Rank some of the items only: the restriction acts inside the search, so it costs no places of the list."""

from __future__ import annotations

import copy

import numpy as np

from distill.decoding.trie import Trie
from student.item_recommender import ItemRecommender
from student.recommender import Recommender


def restrict(
    recommender: Recommender | ItemRecommender, items: np.ndarray, trie: Trie | None = None
) -> Recommender | ItemRecommender:
    """Return the same student recommending these items only: codewords are searched in a trie of their IDs.

    Scores are those of the whole catalogue: nothing is renormalised.

    Args:
        recommender: any student, not compiled.
        items: distinct item numbers, at least one, ascending.
        trie: of these items' IDs, on the student's device; None: built here.
    """
    student = copy.copy(recommender)
    student.allowed = np.zeros(recommender.n_items, dtype=bool)
    student.allowed[items] = True
    if isinstance(student, Recommender):
        student.graphs = None  # they search the whole catalogue
        trie = trie or student.trie.restricted(student.codes.cpu().numpy(), items).to(student.device)
        student.trie = trie
    return student


def rank_within(
    recommender: Recommender | ItemRecommender,
    histories: np.ndarray,
    width: int,
    exclude_bought: bool,
    items: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank all items, or these only, as `rank_items`.

    Args:
        recommender: any student.
        histories: item numbers, oldest first, padded with -1 on the right [users, length].
        width: beams, for item models places of the list.
        exclude_bought: leave out the history's items.
        items: distinct item numbers, at least one, ascending; None: all.
    """
    student = recommender if items is None else restrict(recommender, items)
    return student.rank_items(histories, width, exclude_bought)
