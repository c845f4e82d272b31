"""Filters: which items a request allows, with the trie of their IDs."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from cachetools import LRUCache

from distill.decoding.trie import Trie
from student.item_recommender import ItemRecommender
from student.recommender import Recommender
from student.restriction import restrict

FILTERS_KEPT = 16  # of a student; a trie takes 4 bytes an item of the catalogue, 30 an allowed item, tables of 8 MiB


class AllowedItems:
    """Items that a filter leaves, and the trie of their IDs once a list was asked for.

    Args:
        items: item numbers, at least one, ascending.
    """

    def __init__(self, items: np.ndarray):
        self.items = items
        self._trie: Trie | None = None

    def restrict(self, recommender: Recommender | ItemRecommender) -> Recommender | ItemRecommender:
        """Return the student recommending these items only; all calls must be for students of the same codes."""
        student = restrict(recommender, self.items, self._trie)
        if isinstance(student, Recommender):
            self._trie = student.trie
        return student


def kept_filters() -> LRUCache[Hashable, AllowedItems]:
    """Make room for the filters that were asked for last."""
    return LRUCache(FILTERS_KEPT)
