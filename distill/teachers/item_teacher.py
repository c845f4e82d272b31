"""Teachers that score whole items: their codeword labels follow exactly from the item probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from distill.data.dataset import PAD, Examples
from distill.decoding.trie import Trie
from distill.labels.labeller import LabelRequest, Labels, Progress, correct, joined, places
from distill.ranking import mask_history, top_items

CHUNK = 256  # examples whose distributions over all items are in memory at once


class ItemTeacher(Protocol):
    """Says how likely every item is."""

    def probabilities(self, examples: Examples, hide: bool) -> np.ndarray:
        """P(v|S) of all items; the target's is above zero.

        Args:
            examples: n examples; of a training example nothing from its target on may have been looked at.
            hide: items of the history will not be recommended.

        Returns:
            float64 [n, n_items], rows sum to 1.
        """

    def facts(self) -> dict[str, Any]:
        """What decides the labels, for the manifest."""


class ScoreTeacher:
    """Any model that scores all items: P ∝ exp(score / temperature).

    Args:
        score: histories padded with -1 [n, length] → scores or log-probabilities [n, n_items].
        name: for the manifest.
        temperature: divides the scores.
    """

    def __init__(self, score: Callable[[np.ndarray], np.ndarray], name: str, temperature: float = 1.0):
        self.score, self.name, self.temperature = score, name, temperature

    def probabilities(self, examples: Examples, hide: bool) -> np.ndarray:
        """As `ItemTeacher.probabilities`."""
        scores = self.score(examples.histories).astype(float) / self.temperature
        scores = np.exp(scores - scores.max(1, keepdims=True)).clip(1e-30)
        return _normalised(_without_bought(scores, examples, hide))

    def facts(self) -> dict[str, Any]:
        """Name and temperature."""
        return {"teacher": self.name, "temperature": self.temperature}


def leaf_probabilities(probabilities: np.ndarray, trie: Trie) -> np.ndarray:
    """Probabilities of the semantic IDs from those of the items [n, n_items] → [n, n_leaves]; shared IDs add up."""
    return np.add.reduceat(probabilities[:, trie.leaf_items.numpy()], trie.leaf_offsets.numpy()[:-1], axis=1)


def codeword_marginals(leaves: np.ndarray, trie: Trie, targets: np.ndarray, scope: str = "level") -> np.ndarray:
    """Log-probabilities of every codeword after each prefix of the targets, exactly.

    Args:
        leaves: probabilities of all semantic IDs, from `leaf_probabilities` [n, n_leaves].
        trie: the semantic IDs.
        targets: the items that are forced; their probability is above zero [n].
        scope: "level": the level's codewords alone; "all": the codewords of all levels, -inf for the others'.

    Returns:
        float64 [n, levels, codebook_size] or [n, levels, levels · codebook_size]; -inf where no item is below.
    """
    levels, size = trie.levels, trie.codebook_size
    offsets = [one.numpy().astype(np.int64) for one in trie.offsets]
    masses = [leaves]  # of the nodes, from the leaves up to the root's children
    for level in range(levels - 1, 0, -1):
        masses.insert(0, np.add.reduceat(masses[0], offsets[level][:-1], axis=1))
    out = np.full((len(targets), levels, levels if scope == "all" else 1, size), -np.inf)
    node = trie.leaf_of_item.numpy()[targets].astype(np.int64)
    for level in range(levels - 1, -1, -1):
        node = np.searchsorted(offsets[level], node, side="right") - 1  # the parent: the prefix
        first = offsets[level][node]
        row, back = _ragged(offsets[level][node + 1] - first)
        child = first[row] + back
        mass = masses[level][row, child]
        total = np.bincount(row, mass, minlength=len(targets))
        with np.errstate(divide="ignore"):
            own = np.log(mass) - np.log(total)[row]
        out[row, level, level if scope == "all" else 0, trie.codes[level].numpy()[child]] = own
    return out.reshape(len(targets), levels, -1)


class ItemLabeller:
    """Labels of an item-level teacher: codewords exactly, candidates its top items (`labelling.Labeller`).

    Items that share an ID score alike, the sum of their probabilities, as with teachers that only see IDs.

    Args:
        teacher: says how likely every item is.
        trie: the semantic IDs.
        hide: whether the teacher may know that items of the history will not be recommended.
    """

    def __init__(self, teacher: ItemTeacher, trie: Trie, hide: bool):
        self.teacher, self.trie, self.hide = teacher, trie, hide
        self.leaf_of_item = trie.leaf_of_item.numpy()

    def label(self, examples: Examples, ask: LabelRequest, progress: Progress) -> Labels:
        """As `labelling.Labeller.label`."""
        parts = []
        for start in range(0, len(examples), CHUNK):
            part = examples.take(slice(start, start + CHUNK))
            leaves = leaf_probabilities(self.teacher.probabilities(part, self.hide), self.trie)
            log_probs = codeword_marginals(leaves, self.trie, part.targets, ask.scope)
            scores = leaves[:, self.leaf_of_item]
            own = scores[np.arange(len(part)), part.targets]
            if ask.exclude_bought:
                mask_history(scores, part.histories, 0.0)
            best = top_items(scores, ask.width)
            with np.errstate(divide="ignore"):
                found = np.log(np.take_along_axis(scores, best.clip(0), axis=1))
                kept = correct(best, found, part.targets, np.log(own), ask.keep)
            parts.append(Labels(*kept, log_probs.astype(np.float32), places(best, part.targets)))
            progress(len(part))
        return joined(parts)

    def log_prob(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """As `labelling.Labeller.log_prob`."""
        out = np.full(items.shape, -np.inf)
        for start in range(0, len(examples), CHUNK):
            rows = slice(start, start + CHUNK)
            leaves = leaf_probabilities(self.teacher.probabilities(examples.take(rows), self.hide), self.trie)
            with np.errstate(divide="ignore"):
                found = np.log(np.take_along_axis(leaves, self.leaf_of_item[items[rows].clip(0)], axis=1))
            out[rows] = np.where(items[rows] == PAD, -np.inf, found)
        return out

    def facts(self) -> dict[str, Any]:
        """The teacher's."""
        return self.teacher.facts()


def _normalised(values: np.ndarray) -> np.ndarray:
    """Rows that sum to 1; rows of zeros stay."""
    total = values.sum(1, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values, dtype=float), where=total > 0)


def _without_bought(values: np.ndarray, examples: Examples, hide: bool) -> np.ndarray:
    """Items of the history at zero, but for the target, which these teachers are told anyway."""
    if hide:
        rows = np.arange(len(examples))
        own = values[rows, examples.targets]
        mask_history(values, examples.histories, 0.0)
        values[rows, examples.targets] = own
    return values


def _ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row i `counts[i]` times, and 0, 1, … within each row."""
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
