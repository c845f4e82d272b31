"""Slow, readable versions of distill/semantic_ids/: quantisers/, collisions.py and quality.py."""

import numpy as np


def residual_codes(x, center, words):
    """Item by item: each level the nearest codeword, then subtract it."""
    codes = []
    for row in x:
        left, own = row - center, []
        for level in words:
            own.append(int(np.argmin([np.sum((left - word) ** 2) for word in level])))
            left = left - level[own[-1]]
        codes.append(own)
    return np.array(codes)


def share_of_pairs(prefix, pairs):
    """How many of the pairs of items have one prefix."""
    return np.mean([prefix[i] == prefix[j] for i, j in pairs])


def chance(prefix, weight):
    """Two different items, the first drawn by weight, the second by weight among the others, up to order."""
    met = total = 0.0
    for i in range(len(prefix)):
        for j in range(len(prefix)):
            if i != j:
                total += weight[i] * weight[j]
                met += weight[i] * weight[j] * (prefix[i] == prefix[j])
    return met / total


def purity(prefix, label):
    """Items of their prefix's commonest label, among items whose prefix has others."""
    right = count = 0
    for value in set(prefix):
        group = [label[i] for i in range(len(prefix)) if prefix[i] == value]
        if len(group) > 1:
            right += max(group.count(one) for one in group)
            count += len(group)
    return right / count if count else None


def ppmi(counts):
    """max(0, log(p(i, j) / (p(i) p(j))))."""
    p = counts / counts.sum()
    found = np.zeros_like(p)
    for i in range(len(p)):
        for j in range(len(p)):
            if p[i, j] > 0:
                found[i, j] = max(0.0, np.log(p[i, j] / (p[i].sum() * p[:, j].sum())))
    return found
