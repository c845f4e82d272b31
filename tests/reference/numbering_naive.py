"""Slow, readable versions of distill/semantic_ids/numbering.py and collaborative.py."""

from itertools import combinations

import numpy as np


def first_appearances(sequences):
    """The items in the order in which a reader of all sequences meets them."""
    order = []
    for sequence in sequences:
        for item in sequence:
            if item not in order:
                order.append(item)
    return order


def pairs(sequences, n_items):
    """How often two different items stand in one sequence, each pair of places once."""
    counts = np.zeros((n_items, n_items))
    for sequence in sequences:
        for left, right in combinations(sequence, 2):
            if left != right:
                counts[left, right] += 1
                counts[right, left] += 1
    return counts
