"""Slow, readable version of distill/baselines/graph_walk.py: sets and dictionaries, hop by hop."""

import math
from itertools import pairwise


def cosine(a, b):
    norm = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0


def recommend(sequences, vectors, history, k, budgets, alpha, both, left_out):
    """Every hop's places, then what the hops have left, then whatever is similar to the last item."""
    counts = {}
    for sequence in sequences:
        for a, b in pairwise(sequence):
            if a != b:
                for edge in [(a, b), (b, a)] if both else [(a, b)]:
                    counts[edge] = counts.get(edge, 0) + 1

    ranked_rings = []
    for back, budget in enumerate(budgets):
        if back >= len(history):
            ranked_rings += [([], place) for place in budget]
            continue
        source = history[-1 - back]
        seen, edge = {source}, {source}
        most = max([math.log1p(n) for (a, _), n in counts.items() if a == source], default=1.0)
        for hop, place in enumerate(budget):
            ring = {b for a, b in counts if a in edge} - seen
            seen |= ring
            bonus = {b: alpha * math.log1p(counts[source, b]) / most if hop == 0 else 0.0 for b in ring}
            score = {b: cosine(vectors[source], vectors[b]) + bonus[b] for b in ring}
            ranked_rings.append((sorted(ring, key=lambda b, score=score: (-score[b], b)), place))
            edge = ring

    chosen = []

    def take(items, count):
        fresh = [item for item in items if item not in chosen and item not in left_out]
        chosen.extend(fresh[:count])

    for ring, place in ranked_rings:
        take(ring, place)
    for ring, _ in ranked_rings:
        take(ring, k)
    last = history[-1]
    take(sorted(range(len(vectors)), key=lambda b: (-cosine(vectors[last], vectors[b]), b)), k)
    return (chosen + [-1] * k)[:k]
