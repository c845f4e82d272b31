"""Slow, readable versions of distill/teachers/: sums over all items and counts from scratch."""

import math

from reference import counting_naive


def transition_scores(sequences, user, position, history, n_items, settings):
    """Scores of the counting baseline after a history, with the user's sequence ending before the position."""
    shorter = [row[:position] if number == user else row for number, row in enumerate(sequences)]
    return counting_naive.scores(shorter, history, n_items, settings)


def marginals(probabilities, codes, target, size):
    """log P(codeword | prefix of the target) [levels][size], by summing over all items."""
    table = []
    for level in range(len(codes[0])):
        below = [item for item, code in enumerate(codes) if list(code[:level]) == list(codes[target][:level])]
        total = sum(probabilities[item] for item in below)
        row = []
        for codeword in range(size):
            mass = sum(probabilities[item] for item in below if codes[item][level] == codeword)
            row.append(math.log(mass / total) if mass > 0 else -math.inf)
        table.append(row)
    return table


def bought_together(sequences, n_items):
    """A = MᵀM: the number of users who bought both items."""
    users = [set(row) for row in sequences]
    return [[sum(i in bought and j in bought for bought in users) for j in range(n_items)] for i in range(n_items)]


def distance(a, b):
    """Equation (18)."""
    levels = len(a)
    return sum(2 ** (levels - 1 - level) for level in range(levels) if a[level] != b[level])
