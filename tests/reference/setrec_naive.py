"""SETRec by its definitions: who sees whom, the loss and the scores, in loops."""

import math


def sees(query, key, sparse=True):
    """Tell whether a token sees another; a token is ("word", i), ("item", i, k) or ("query", place, k)."""
    if query == key:
        return True
    if query[0] == "query":
        return key[0] == "word" or (key[0] == "item" and key[1] <= query[1])
    if query[0] == "word":
        return key[0] == "word" and key[1] < query[1]
    if key[0] == "word":
        return True
    return key[0] == "item" and (key[1] < query[1] or (not sparse and key[1] == query[1]))


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def log_softmax(values):
    top = max(values)
    total = top + math.log(sum(math.exp(value - top) for value in values))
    return [value - total for value in values]


def cross_entropy(generated, tokens, target):
    """(1/K) Σ_k CE(softmax_v ⟨ê^k, T^k_v⟩, target) for ê [K, d] and T [n_items, K, d]."""
    count = len(generated)
    return -sum(
        log_softmax([dot(generated[k], token[k]) for token in tokens])[target] for k in range(count)
    ) / count  # fmt: skip


def scores(generated, tokens, beta):
    """(1 − β)·⟨ê⁰, T⁰_v⟩ + β·Σ_{k≥1} ⟨ê^k, T^k_v⟩ of every item, ê⁰ being the CF token's."""
    return [
        (1 - beta) * dot(generated[0], token[0])
        + beta * sum(dot(generated[k], token[k]) for k in range(1, len(generated)))
        for token in tokens
    ]
