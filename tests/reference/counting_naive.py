"""Slow, readable version of distill/baselines/counting.py: loops over pairs, straight from the definitions."""

import math


def count(sequences, n_items, window, decay):
    """A[i][j]: for each pair at distance g ≤ window, decay^(g−1), added in both directions."""
    table = [[0.0] * n_items for _ in range(n_items)]
    for sequence in sequences:
        for late in range(len(sequence)):
            for early in range(late):
                gap = late - early
                if gap <= window:
                    table[sequence[early]][sequence[late]] += decay ** (gap - 1)
                    table[sequence[late]][sequence[early]] += decay ** (gap - 1)
    return table


def scores(sequences, history, n_items, settings):
    """Σ_{d=0..L−1} w^d · N[d-th last item], with N = diag(rowsum^−½) A."""
    table = count(sequences, n_items, settings.window, settings.decay)
    total = [0.0] * n_items
    for back, item in enumerate(reversed(history)):
        if back >= settings.last or sum(table[item]) == 0:
            continue
        for other in range(n_items):
            total[other] += settings.recency**back * table[item][other] / math.sqrt(sum(table[item]))
    return total


def top(values, k, left_out):
    """The k best items that score anything, ties by number, −1 for none."""
    open_items = [item for item, value in enumerate(values) if value > 0 and item not in left_out]
    best = sorted(open_items, key=lambda item: (-values[item], item))[:k]
    return best + [-1] * (k - len(best))


def gain(ranked, target, k):
    """NDCG@k with one relevant item."""
    return 1 / math.log2(ranked.index(target) + 2) if target in ranked[:k] else 0.0
