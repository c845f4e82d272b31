"""A weighted mixture of teachers, computed exactly from their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distill.data.dataset import PAD, Examples
from distill.labels.labeller import Labeller, LabelRequest, Labels, Progress, correct, no_progress, target_ranks


class MixtureLabeller:
    """Labels examples by the mixture Σ_m w_m P_m, exactly from the labels of its parts.

    At each level, part m's distribution is weighted by w_m · P_m(prefix of the target) (`mix_codewords`). The
    candidates are those of all parts, scored by every part; items outside every part's `width` best are not
    considered. Implements `Labeller`.

    Args:
        parts: the teachers.
        weights: of the parts, above zero; they are normalised.
        codes: codewords of all items [n_items, levels].
    """

    def __init__(self, parts: Sequence[Labeller], weights: Sequence[float], codes: np.ndarray):
        self.parts, self.codes = list(parts), codes
        self.log_weights = np.log(np.array(weights, dtype=float) / sum(weights))

    def label(self, examples: Examples, request: LabelRequest, progress: Progress) -> Labels:
        """As `Labeller.label`; the first part reports the progress."""
        part_request = replace(request, keep=request.width + 1)  # the reference takes a place
        part_labels = [
            part.label(examples, part_request, progress if number == 0 else no_progress)
            for number, part in enumerate(self.parts)
        ]
        columns = self.codes[examples.targets]
        if request.scope == "all":
            levels = columns.shape[1]
            columns = columns + np.arange(levels) * (part_labels[0].log_probs.shape[2] // levels)
        log_probs = mix_codewords([labels.log_probs for labels in part_labels], self.log_weights, columns)

        items, scores = self._score_candidates(examples, part_labels)
        target_scores = np.where(items == examples.targets[:, None], scores, -np.inf).max(1)
        if request.exclude_bought:  # after the target's score is taken: it may have been bought before
            scores = np.where((items[:, :, None] == examples.histories[:, None, :]).any(2), -np.inf, scores)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : request.width]
        beams, beam_scores = np.take_along_axis(items, order, axis=1), np.take_along_axis(scores, order, axis=1)
        beams = np.where(np.isfinite(beam_scores), beams, PAD)
        candidates = correct(beams, beam_scores, examples.targets, target_scores, request.keep)
        invalid = next((labels.invalid for labels in part_labels if labels.invalid is not None), None)
        return Labels(*candidates, log_probs, target_ranks(beams, examples.targets), invalid)

    def log_prob(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """As `Labeller.log_prob`."""
        return mix([part.log_prob(examples, items) for part in self.parts], self.log_weights)

    def _score_candidates(self, examples: Examples, part_labels: list[Labels]) -> tuple[np.ndarray, np.ndarray]:
        """List all parts' candidates, ascending, padded with -1, and their mixed log P(v|S); both [n, width]."""
        items = distinct(np.concatenate([labels.candidates for labels in part_labels], axis=1))
        part_scores = [
            complete_scores(part, labels, examples, items) for part, labels in zip(self.parts, part_labels, strict=True)
        ]
        return items, mix(part_scores, self.log_weights)

    def facts(self) -> dict[str, Any]:
        """Return the facts and the weight of every part."""
        weights = np.exp(self.log_weights).round(6).tolist()
        parts = zip(weights, self.parts, strict=True)
        return {"teacher": "mixture", "parts": [{"weight": weight, **part.facts()} for weight, part in parts]}


def mix(log_probs: Sequence[np.ndarray], log_weights: np.ndarray) -> np.ndarray:
    """Compute log Σ_m w_m exp(log_probs_m), element by element."""
    return np.logaddexp.reduce([values + weight for values, weight in zip(log_probs, log_weights, strict=True)])


def mix_codewords(log_probs: Sequence[np.ndarray], log_weights: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mix the teacher-forced codeword distributions of several teachers.

    P(c | prefix) = Σ_m w_m P_m(prefix) P_m(c | prefix) / Σ_m w_m P_m(prefix); P_m(prefix) is the product of part m's
    probabilities along the target.

    Args:
        log_probs: of each part [n, levels, V].
        log_weights: log w_m [parts].
        targets: columns of the targets' codewords in V [n, levels].

    Returns:
        float32 [n, levels, V].
    """
    weighted, prefixes = [], []
    for part, weight in zip(log_probs, log_weights, strict=True):
        along_target = np.take_along_axis(part, targets[..., None], axis=2)[..., 0].astype(float)
        before_level = np.pad(np.cumsum(along_target, axis=1)[:, :-1], ((0, 0), (1, 0)))  # [n, levels]
        prefixes.append(weight + before_level)
        weighted.append(part + prefixes[-1][..., None])
    return (np.logaddexp.reduce(weighted) - np.logaddexp.reduce(prefixes)[..., None]).astype(np.float32)


def distinct(items: np.ndarray) -> np.ndarray:
    """Sort each row's distinct items in ascending order, padded with -1 [n, width] → [n, at most width]."""
    ordered = np.sort(items, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = PAD
    order = np.argsort(ordered == PAD, axis=1, kind="stable")
    return np.take_along_axis(ordered, order, axis=1)[:, : max((ordered != PAD).sum(1).max(), 1)]


def complete_scores(part: Labeller, labels: Labels, examples: Examples, items: np.ndarray) -> np.ndarray:
    """Compute `part.log_prob`, but only for the items that its labels have not scored yet.

    Args:
        part: a teacher.
        labels: the part's labels of the examples.
        examples: n examples.
        items: item numbers, distinct in a row, -1 for none [n, width].

    Returns:
        [n, width], −∞ for -1.
    """
    scores = np.full(items.shape, -np.inf)
    missing = items != PAD
    for candidate, score in zip(labels.candidates.T, labels.scores.T, strict=True):
        matches = (items == candidate[:, None]) & missing
        scores[matches] = np.broadcast_to(score[:, None], items.shape)[matches]
        missing &= ~matches
    if missing.any():
        columns = np.argsort(~missing, axis=1, kind="stable")[:, : missing.sum(1).max()]
        requested = np.where(
            np.take_along_axis(missing, columns, axis=1), np.take_along_axis(items, columns, axis=1), PAD
        )
        exact = part.log_prob(examples, requested)
        rows = np.arange(len(items))[:, None]
        scores[rows, columns] = np.where(requested != PAD, exact, scores[rows, columns])
    return scores
