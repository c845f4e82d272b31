"""Audit a data set: how far do shortcuts solve it?

Three shortcuts after Han et al. 2026 (arXiv 2605.07125): few next items of an item, similar neighbours, and histories
of which the last item alone matters. The measures are ours. A benchmark that shortcuts solve tells little about
models. Only the training part is counted; the targets are those of the validation part.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from distill.baselines.content import Content
from distill.baselines.counting import Transitions, count_transitions
from distill.baselines.item_scorer import mean_ndcg, sample_examples, split_examples
from distill.baselines.mixture import CounterContent
from distill.baselines.popularity import Popularity
from distill.data.dataset import PAD, Dataset, Examples
from distill.runtime.markdown import markdown_table

LASTS = (1, 2, 5, 20)  # items of the history that the counter may read
PAIRS = 20_000  # sampled for similarities


class Finding(NamedTuple):
    """One line of the table: what was measured, its value, and how to read it."""

    name: str
    value: float
    meaning: str


def audit(
    dataset: Dataset,
    vectors: np.ndarray | None,
    exclude_bought: bool,
    users: int = 5000,
    texts: np.ndarray | None = None,
) -> list[Finding]:
    """Measure all shortcuts.

    Args:
        dataset: the data set.
        vectors: item embeddings [n_items, dim]; None: no similarities are measured.
        exclude_bought: whether items of the history are left out of lists.
        users: validation examples that are ranked, at most.
        texts: item text embeddings [n_items, dim]; None: the baselines that read texts are not measured.
    """
    values, offsets = dataset.training_sequences()
    examples = sample_examples(dataset.examples("valid"), users)
    pairs = next_item_pairs(values, offsets)
    findings = branching(pairs, dataset.n_items)
    if vectors is not None:
        findings += smoothness(pairs, vectors)
    tuned, _ = Transitions.tune(dataset, exclude_bought)
    findings += dependence(dataset, tuned, examples, exclude_bought)
    if texts is not None:
        findings += similarity_alone(dataset, tuned, texts, examples, exclude_bought)
    return findings + reach(values, offsets, dataset.n_items, examples)


def branching(pairs: np.ndarray, n_items: int) -> list[Finding]:
    """Measure how many different items follow an item, averaged over the transitions of the data.

    Args:
        pairs: an item and the next one [n, 2].
        n_items: catalogue size.
    """
    edges, counts = np.unique(pairs[:, 0] * n_items + pairs[:, 1], return_counts=True)
    sources = edges // n_items
    total = np.bincount(sources, counts, minlength=n_items)
    distinct = np.bincount(sources, minlength=n_items)
    share = counts / total[sources]
    entropy = np.bincount(sources, -share * np.log(share), minlength=n_items)
    frequency = total / total.sum()
    return [
        Finding("next items of an item", float(frequency @ distinct), "distinct, mean over transitions: few are a "
                "shortcut"),
        Finding("effective branching", float(np.exp(frequency @ entropy)), "exp of the mean entropy of the next item"),
        Finding("repeated transitions", float(counts[counts > 1].sum() / counts.sum()), "share met more than once"),
    ]  # fmt: skip


def smoothness(pairs: np.ndarray, vectors: np.ndarray) -> list[Finding]:
    """Measure whether neighbours are similar: cosines of an item and its next against those of shuffled pairs.

    Args:
        pairs: an item and the next one [n, 2].
        vectors: item text embeddings [n_items, dim].
    """
    rng = np.random.default_rng(0)
    chosen = pairs[rng.permutation(len(pairs))[:PAIRS]]
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    shuffled = chosen[rng.permutation(len(chosen)), 1]
    near, far = (np.einsum("nd,nd->n", unit[chosen[:, 0]], unit[items]) for items in (chosen[:, 1], shuffled))
    order = np.sort(far)
    won = (np.searchsorted(order, near, side="left") + np.searchsorted(order, near, side="right")) / 2
    return [
        Finding("similarity of neighbours", float(near.mean()), f"mean cosine; {far.mean():.3f} of shuffled pairs"),
        Finding("alike beyond chance", float(won.mean() / len(order)), "0.5 by chance; near 1: smooth, a shortcut"),
    ]


def dependence(dataset: Dataset, tuned: Transitions, examples: Examples, exclude_bought: bool) -> list[Finding]:
    """Measure how much of the counter's NDCG@10 the last item alone gives."""
    value = {}
    for last in LASTS:
        model = tuned.with_settings(replace(tuned.settings, last=last))
        value[last] = mean_ndcg(model, examples, exclude_bought)
    best = max(max(value.values()), 1e-12)
    return [
        Finding("popularity's NDCG@10", mean_ndcg(Popularity(dataset), examples, exclude_bought), "validation"),
        Finding("counter's NDCG@10", value[max(LASTS)], f"validation, the last {max(LASTS)} items, tuned settings"),
        *(
            Finding(
                f"kept with the last {last}", value[last] / best, "of the best; near 1: short dependence, a shortcut"
            )
            for last in LASTS[:2]
        ),
    ]


def similarity_alone(
    dataset: Dataset, tuned: Transitions, texts: np.ndarray, examples: Examples, exclude_bought: bool
) -> list[Finding]:
    """Measure how far frozen text embeddings come, alone and mixed with the counter, without learning."""
    content = Content.tune(dataset, texts, exclude_bought)
    both = CounterContent.tune(dataset, tuned, content, exclude_bought)
    return [
        Finding("content's NDCG@10", mean_ndcg(content, examples, exclude_bought), "validation, similarity of texts"),
        Finding("counter and content's NDCG@10", mean_ndcg(both, examples, exclude_bought), "validation, mixed"),
    ]


def reach(values: np.ndarray, offsets: np.ndarray, n_items: int, examples: Examples) -> list[Finding]:
    """Measure which targets counting can find at all, and how familiar targets are.

    Args:
        values, offsets: of the training sequences.
        n_items: catalogue size.
        examples: of the validation part.
    """
    reachable = met_in_training(values, offsets, n_items, examples)
    counts = count_transitions(values, offsets, n_items, 1, 1.0)
    last = examples.histories[np.arange(len(examples)), (examples.histories != PAD).sum(1) - 1]
    neighbour = np.asarray(counts[last, examples.targets]).ravel() > 0
    bought = (examples.histories == examples.targets[:, None]).any(1)
    seen = np.bincount(values, minlength=n_items)[examples.targets]
    return [
        Finding("reachable by counting", float(reachable.mean()), "target and an item of the history met in training"),
        Finding("next to the last item", float(neighbour.mean()), "the target stood beside the last item in training"),
        Finding("bought before", float(bought.mean()), "the target is in the history"),
        Finding("targets seen under 5 times", float((seen < 5).mean()), "in the training part"),
        Finding("cold targets", float((seen == 0).mean()), "in no training sequence: counting cannot find them"),
    ]


def met_in_training(values: np.ndarray, offsets: np.ndarray, n_items: int, examples: Examples) -> np.ndarray:
    """Tell whether a training sequence holds a pair of the target and an item of the history [users], bool.

    The pairs of all sequences are never counted: their number grows with the square of the sequences' lengths.

    Args:
        values, offsets, n_items, examples: as for `reach`.
    """
    sequence_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    shape = (len(offsets) - 1, n_items)
    times = sp.coo_array((np.ones(len(values), np.int32), (sequence_of, values)), shape=shape).tocsr()
    is_repeated = np.zeros(n_items, dtype=bool)
    is_repeated[times.indices[times.data > 1]] = True  # some sequence holds a pair of the item with itself
    holds = times.astype(bool)
    held_by, met = holds.T.tocsr(), []
    for part in split_examples(examples, n_items):
        targets, row = np.unique(part.targets, return_inverse=True)
        meets = (held_by[targets] @ holds).toarray()  # whether any sequence holds both [targets, n_items]
        meets[np.arange(len(targets)), targets] = is_repeated[targets]
        is_met = meets[row[:, None], part.histories.clip(min=0)] & (part.histories != PAD)
        met.append(is_met.any(1))
    return np.concatenate(met)


def next_item_pairs(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """An item and the next one, of all sequences [n, 2]."""
    sequence_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    together = sequence_of[1:] == sequence_of[:-1]
    return np.stack([values[:-1][together], values[1:][together]], axis=1)


def as_markdown(findings: list[Finding]) -> str:
    """Format the findings as a Markdown table."""
    rows = [(name, f"{value:.3f}", meaning) for name, value, meaning in findings]
    return markdown_table(("measure", "value", ""), rows, text_columns=(0, 2))
