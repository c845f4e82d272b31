"""Slow, readable versions of distill/baselines/content.py and mixture.py: plain loops, straight from the formulas."""

import math


def unit_vectors(vectors):
    """Centred over the items, then of length 1."""
    dim = len(vectors[0])
    mean = [sum(row[i] for row in vectors) / len(vectors) for i in range(dim)]
    centred = [[row[i] - mean[i] for i in range(dim)] for row in vectors]
    lengths = [math.sqrt(sum(value * value for value in row)) for row in centred]
    return [[value / length for value in row] for row, length in zip(centred, lengths, strict=True)]


def cosines(vectors, history, recency, last):
    """Cosine of each item with Σ_{d < last} recency^d · e[d-th last item]."""
    units = unit_vectors(vectors)
    profile = [0.0] * len(units[0])
    for back, item in enumerate(reversed(history)):
        if back < last:
            profile = [value + recency**back * part for value, part in zip(profile, units[item], strict=True)]
    length = math.sqrt(sum(value * value for value in profile))
    return [sum(a * b for a, b in zip(profile, row, strict=True)) / length for row in units]


def mixture(counter_scores, cosine, weight, temperature, left_out):
    """(1 − a) · counter's shares + a · softmax(cosine / τ), both over the items that are not left out."""
    items = [item for item in range(len(cosine)) if item not in left_out]
    total = sum(counter_scores[item] for item in items)
    powers = sum(math.exp(cosine[item] / temperature) for item in items)
    mixed = [0.0] * len(cosine)
    for item in items:
        share = counter_scores[item] / total if total else 0.0
        mixed[item] = (1 - weight) * share + weight * math.exp(cosine[item] / temperature) / powers
    return mixed
