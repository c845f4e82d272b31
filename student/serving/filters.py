"""Filters: which items a request allows, kept with the trie of their IDs for the next request of the same filter."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

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


class FilterCache:
    """The filters that were asked for last, at most `size`."""

    def __init__(self, size: int = FILTERS_KEPT):
        self.size = size
        self._kept: OrderedDict[Hashable, AllowedItems] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, find: Callable[[], np.ndarray]) -> AllowedItems:
        """Return the items of a filter, by `find` where they are not kept."""
        if key not in self._kept:
            self._kept[key] = AllowedItems(find())
        self._kept.move_to_end(key)
        while len(self._kept) > self.size:
            self._kept.popitem(last=False)
        return self._kept[key]
