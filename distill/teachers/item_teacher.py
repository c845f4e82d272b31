"""Teachers that give a probability to every item; the labels of the codewords follow exactly from these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from distill.data.dataset import PAD, Examples
from distill.data.examples import ragged_range
from distill.decoding.trie import Trie
from distill.labels.labeller import LabelRequest, Labels, Progress, concatenate_labels, correct, target_ranks
from distill.ranking import mask_history, scores_of, top_items

CHUNK = 256  # examples whose distributions over all items are in memory at once


class ItemTeacher(Protocol):
    """A teacher that gives a probability to every item."""

    def probabilities(self, examples: Examples, exclude_bought: bool) -> np.ndarray:
        """Compute P(v|S) of all items; the target's is above zero.

        Args:
            examples: n examples; for a training example the user's items from the target on must not be used.
            exclude_bought: whether items of the history will not be recommended.

        Returns:
            float64 [n, n_items], rows sum to 1.
        """

    def facts(self) -> dict[str, Any]:
        """Return the settings that determine the labels, for the index."""


class ScoreTeacher:
    """A teacher from any model that scores all items: P ∝ exp(score / temperature).

    Args:
        score: histories padded with -1 [n, length] → scores or log-probabilities [n, n_items].
        name: for the index.
        temperature: divides the scores.
    """

    def __init__(self, score: Callable[[np.ndarray], np.ndarray], name: str, temperature: float = 1.0):
        self.score, self.name, self.temperature = score, name, temperature

    def probabilities(self, examples: Examples, exclude_bought: bool) -> np.ndarray:
        """As `ItemTeacher.probabilities`."""
        scores = self.score(examples.histories).astype(float) / self.temperature
        scores = np.exp(scores - scores.max(1, keepdims=True)).clip(1e-30)
        if exclude_bought:
            zero_history(scores, examples)
        return normalise_rows(scores)

    def facts(self) -> dict[str, Any]:
        """Return the name and the temperature."""
        return {"teacher": self.name, "temperature": self.temperature}


def leaf_probabilities(probabilities: np.ndarray, trie: Trie) -> np.ndarray:
    """Sum the probabilities of the items behind each semantic ID, [n, n_items] → [n, n_leaves]."""
    return np.add.reduceat(probabilities[:, trie.leaf_items.numpy()], trie.leaf_offsets.numpy()[:-1], axis=1)


def codeword_marginals(leaves: np.ndarray, trie: Trie, targets: np.ndarray, scope: str = "level") -> np.ndarray:
    """Compute the log-probabilities of all codewords after each prefix of the targets (teacher forcing), exactly.

    The probability of a codeword after a prefix is the summed probability of the items below it, over that of the
    items below the prefix.

    Args:
        leaves: probabilities of all semantic IDs, from `leaf_probabilities` [n, n_leaves].
        trie: the semantic IDs.
        targets: item numbers; their probability is above zero [n].
        scope: "level": the codewords of each position's level; "all": of all levels, −∞ outside the position's own.

    Returns:
        float64 [n, levels, codebook_size] or [n, levels, levels · codebook_size]; −∞ where no item is below.
    """
    levels, size = trie.levels, trie.codebook_size
    offsets = [starts.numpy().astype(np.int64) for starts in trie.offsets]
    masses = [leaves]  # of the nodes of each level, from the leaves up to the root's children
    for level in range(levels - 1, 0, -1):
        masses.insert(0, np.add.reduceat(masses[0], offsets[level][:-1], axis=1))
    log_probs = np.full((len(targets), levels, levels if scope == "all" else 1, size), -np.inf)
    node = trie.leaf_of_item.numpy()[targets].astype(np.int64)
    for level in range(levels - 1, -1, -1):
        node = np.searchsorted(offsets[level], node, side="right") - 1  # the parent: the prefix
        first = offsets[level][node]
        row, place = ragged_range(offsets[level][node + 1] - first)
        child = first[row] + place
        mass = masses[level][row, child]
        total = np.bincount(row, mass, minlength=len(targets))
        block = level if scope == "all" else 0
        with np.errstate(divide="ignore"):
            log_probs[row, level, block, trie.codes[level].numpy()[child]] = np.log(mass) - np.log(total)[row]
    return log_probs.reshape(len(targets), levels, -1)


class ItemLabeller:
    """Labels examples by an item-level teacher: exact codeword labels, and its top items as candidates.

    Implements `Labeller`. Items that share a semantic ID get one score, the sum of their probabilities, as they do from
    teachers that only see IDs.

    Args:
        teacher: gives the probabilities.
        trie: the semantic IDs.
        exclude_bought: passed to the teacher: whether items of the history will not be recommended.
    """

    def __init__(self, teacher: ItemTeacher, trie: Trie, exclude_bought: bool):
        self.teacher, self.trie, self.exclude_bought = teacher, trie, exclude_bought
        self.leaf_of_item = trie.leaf_of_item.numpy()

    def label(self, examples: Examples, request: LabelRequest, progress: Progress) -> Labels:
        """As `Labeller.label`."""
        parts = []
        for start in range(0, len(examples), CHUNK):
            part = examples.take(slice(start, start + CHUNK))
            leaves = self._leaf_probabilities(part)
            log_probs = codeword_marginals(leaves, self.trie, part.targets, request.scope)
            scores = leaves[:, self.leaf_of_item]
            target_scores = scores[np.arange(len(part)), part.targets]
            if request.exclude_bought:
                mask_history(scores, part.histories, 0.0)
            beams = top_items(scores, request.width)
            with np.errstate(divide="ignore"):
                beam_scores = np.log(scores_of(scores, beams, missing=0.0))
                candidates = correct(beams, beam_scores, part.targets, np.log(target_scores), request.keep)
            parts.append(Labels(*candidates, log_probs.astype(np.float32), target_ranks(beams, part.targets)))
            progress(len(part))
        return concatenate_labels(parts)

    def log_prob(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """As `Labeller.log_prob`."""
        log_probs = np.empty(items.shape)
        for start in range(0, len(examples), CHUNK):
            rows = slice(start, start + CHUNK)
            leaves = self._leaf_probabilities(examples.take(rows))
            leaf_numbers = np.where(items[rows] == PAD, PAD, self.leaf_of_item[items[rows]])
            with np.errstate(divide="ignore"):
                log_probs[rows] = np.log(scores_of(leaves, leaf_numbers, missing=0.0))
        return log_probs

    def facts(self) -> dict[str, Any]:
        """Return the teacher's facts."""
        return self.teacher.facts()

    def _leaf_probabilities(self, examples: Examples) -> np.ndarray:
        return leaf_probabilities(self.teacher.probabilities(examples, self.exclude_bought), self.trie)


def normalise_rows(values: np.ndarray) -> np.ndarray:
    """Divide rows by their sums; rows of zeros remain zero."""
    total = values.sum(1, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values, dtype=float), where=total > 0)


def zero_history(values: np.ndarray, examples: Examples) -> None:
    """Set the values of the history's items to zero, in place, except the target's: it must remain possible.

    Args:
        values: of all items [n, n_items].
        examples: n examples.
    """
    rows = np.arange(len(examples))
    target_values = values[rows, examples.targets]
    mask_history(values, examples.histories, 0.0)
    values[rows, examples.targets] = target_values
