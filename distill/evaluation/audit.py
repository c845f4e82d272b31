"""How far a data set is solved by shortcuts: few ways on from an item, alike neighbours, histories that end to matter.

The three structures are those of Han et al. 2026 (arXiv 2605.07125); the measures are ours. A benchmark that they solve
says little about models. Only the training part is counted, the targets are the validation part's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from distill.baselines import counting
from distill.baselines.counting import Transitions, count_transitions, recommend
from distill.baselines.popularity import Popularity
from distill.data.dataset import PAD, Dataset, Examples
from distill.metrics import hit_ranks, ndcg

LASTS = (1, 2, 5, 20)  # items of the history that the counter may read
PAIRS = 20_000  # sampled for similarities


class Finding(NamedTuple):
    """One line of the table: what was measured, its value, and how to read it."""

    name: str
    value: float
    meaning: str


def audit(dataset: Dataset, vectors: np.ndarray | None, hide: bool, users: int = 5000) -> list[Finding]:
    """The table.

    Args:
        dataset: what is looked at.
        vectors: item embeddings of texts [n_items, dim]; None: no similarities.
        hide: whether items of the history are left out of lists.
        users: validation examples that are ranked, at most.
    """
    values, offsets = dataset.training_sequences()
    examples = sample(dataset.examples("valid"), users)
    pairs = neighbours(values, offsets)
    found = branching(pairs, dataset.n_items)
    if vectors is not None:
        found += smoothness(pairs, vectors)
    return found + dependence(dataset, examples, hide) + reach(dataset, examples)


def branching(pairs: np.ndarray, n_items: int) -> list[Finding]:
    """How many ways lead on from an item, as met when walking through the data.

    Args:
        pairs: an item and the next one [n, 2].
        n_items: catalogue size.
    """
    edges, counts = np.unique(pairs[:, 0] * n_items + pairs[:, 1], return_counts=True)
    sources = edges // n_items
    total = np.bincount(sources, counts, minlength=n_items)
    ways = np.bincount(sources, minlength=n_items)
    share = counts / total[sources]
    entropy = np.bincount(sources, -share * np.log(share), minlength=n_items)
    met = total / total.sum()
    return [
        Finding("next items of an item", float(met @ ways), "distinct, mean over transitions: few are a shortcut"),
        Finding("effective branching", float(np.exp(met @ entropy)), "exp of the mean entropy of the next item"),
        Finding("repeated transitions", float(counts[counts > 1].sum() / counts.sum()), "share met more than once"),
    ]


def smoothness(pairs: np.ndarray, vectors: np.ndarray) -> list[Finding]:
    """Whether neighbours are alike: cosines of an item and the next against those of an item and any other's next."""
    rng = np.random.default_rng(0)
    chosen = pairs[rng.permutation(len(pairs))[:PAIRS]]
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    other = chosen[rng.permutation(len(chosen)), 1]
    near, far = (np.einsum("nd,nd->n", unit[chosen[:, 0]], unit[items]) for items in (chosen[:, 1], other))
    order = np.sort(far)
    won = (np.searchsorted(order, near, side="left") + np.searchsorted(order, near, side="right")) / 2
    return [
        Finding("similarity of neighbours", float(near.mean()), f"mean cosine; {far.mean():.3f} of shuffled pairs"),
        Finding("alike beyond chance", float(won.mean() / len(order)), "0.5 by chance; near 1: smooth, a shortcut"),
    ]


def dependence(dataset: Dataset, examples: Examples, hide: bool) -> list[Finding]:
    """How much of the counter's NDCG@10 the last item alone gives."""
    tuned, _ = Transitions.tune(dataset)
    value = {}
    for last in LASTS:
        settings = counting.TransitionSettings(**{**tuned.describe(), "last": last})
        lists = recommend(tuned.with_settings(settings), examples, 10, hide)
        value[last] = float(ndcg(hit_ranks(lists, examples.targets), 10).mean())
    most = max(max(value.values()), 1e-12)
    popular = recommend(Popularity(dataset), examples, 10, hide)
    return [
        Finding("popularity's NDCG@10", float(ndcg(hit_ranks(popular, examples.targets), 10).mean()), "validation"),
        Finding("counter's NDCG@10", value[max(LASTS)], f"validation, the last {max(LASTS)} items, tuned settings"),
        *(
            Finding(
                f"kept with the last {last}", value[last] / most, "of the best; near 1: short dependence, a shortcut"
            )
            for last in LASTS[:2]
        ),
    ]


def reach(dataset: Dataset, examples: Examples) -> list[Finding]:
    """What counting can find at all."""
    values, offsets = dataset.training_sequences()
    widest = max(int(np.diff(offsets).max(initial=1)), 1)
    settings = counting.TransitionSettings(window=widest, decay=1.0, recency=1.0, last=examples.histories.shape[1])
    found = counting.reachable(Transitions(dataset, settings), examples)
    counts = count_transitions(values, offsets, dataset.n_items, 1, 1.0)
    last = examples.histories[np.arange(len(examples)), (examples.histories != PAD).sum(1) - 1]
    neighbour = np.asarray(counts[last, examples.targets]).ravel() > 0
    bought = (examples.histories == examples.targets[:, None]).any(1)
    seen = np.bincount(values, minlength=dataset.n_items)[examples.targets]
    return [
        Finding("reachable by counting", float(found.mean()), "target and an item of the history ever met in training"),
        Finding("next to the last item", float(neighbour.mean()), "the target stood beside the last item in training"),
        Finding("bought before", float(bought.mean()), "the target is in the history"),
        Finding("targets seen under 5 times", float((seen < 5).mean()), "in the training part"),
    ]


def neighbours(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """An item and the next one, of all sequences [n, 2]."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    together = owner[1:] == owner[:-1]
    return np.stack([values[:-1][together], values[1:][together]], axis=1)


def sample(examples: Examples, most: int) -> Examples:
    """At most so many of them, always the same."""
    if len(examples) <= most:
        return examples
    return examples.take(np.sort(np.random.default_rng(0).choice(len(examples), most, replace=False)))
