"""A slow, readable version of student/pseudo_ids.py: all sets of levels, sorted by equation (18)."""

from itertools import chain, combinations

from reference.teachers_naive import distance


def pseudo_ids(target, k, other):
    """The target's ID and the k − 1 nearest pseudo-IDs, nearest first.

    `other(level, distance)` is the codeword, not the target's, that the pseudo-ID at this distance has at a level.
    """
    levels = range(len(target))
    subsets = chain.from_iterable(combinations(levels, size) for size in range(len(target) + 1))
    distances = {subset: sum(2 ** (len(target) - 1 - level) for level in subset) for subset in subsets}
    ids = []
    for subset in sorted(distances, key=distances.get)[:k]:
        ids.append([other(level, distances[subset]) if level in subset else target[level] for level in levels])
        assert distance(ids[-1], target) == distances[subset]
    return ids
