"""A weighted mixture of teachers, exact from the labels of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distill.data.dataset import PAD, Examples
from distill.labels.labeller import Labeller, LabelRequest, Labels, Progress, correct, places, silent


class MixtureLabeller:
    """Labels of Σ_m w_m P_m, exact from the parts' labels (`labelling.Labeller`).

    A part's say on the codeword at a level is weighted by w_m · P_m(prefix of the target): who did not expect the
    prefix has little to say about what follows. Candidates are those of all parts, scored by every part; an item that
    is among nobody's first `width` is not considered.

    Args:
        parts: the teachers.
        weights: theirs, above zero; they are normalised.
        codes: of all items [n_items, levels].
    """

    def __init__(self, parts: Sequence[Labeller], weights: Sequence[float], codes: np.ndarray):
        self.parts, self.codes = list(parts), codes
        self.log_weights = np.log(np.array(weights, dtype=float) / sum(weights))

    def label(self, examples: Examples, ask: LabelRequest, progress: Progress) -> Labels:
        """As `labelling.Labeller.label`; the first part reports the progress."""
        wide = replace(ask, keep=ask.width + 1)  # the reference takes a place
        several = [part.label(examples, wide, progress if n == 0 else silent) for n, part in enumerate(self.parts)]
        columns = self.codes[examples.targets]
        if ask.scope == "all":
            levels = columns.shape[1]
            columns = columns + np.arange(levels) * (several[0].log_probs.shape[2] // levels)
        log_probs = mix_codewords([labels.log_probs for labels in several], self.log_weights, columns)
        union = distinct(np.concatenate([labels.candidates for labels in several], axis=1))
        every = [_scores(part, labels, examples, union) for part, labels in zip(self.parts, several, strict=True)]
        scores = mix(every, self.log_weights)
        own = np.where(union == examples.targets[:, None], scores, -np.inf).max(1)
        if ask.exclude_bought:  # the reference is among the candidates whether or not it was bought before
            scores = np.where((union[:, :, None] == examples.histories[:, None, :]).any(2), -np.inf, scores)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : ask.width]
        best, found = np.take_along_axis(union, order, axis=1), np.take_along_axis(scores, order, axis=1)
        best = np.where(np.isfinite(found), best, PAD)
        kept = correct(best, found, examples.targets, own, ask.keep)
        invalid = next((labels.invalid for labels in several if labels.invalid is not None), None)
        return Labels(*kept, log_probs, places(best, examples.targets), invalid)

    def log_prob(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """As `labelling.Labeller.log_prob`."""
        return mix([part.log_prob(examples, items) for part in self.parts], self.log_weights)

    def facts(self) -> dict[str, Any]:
        """Every part's facts and weight."""
        weights = np.exp(self.log_weights).round(6).tolist()
        parts = zip(weights, self.parts, strict=True)
        return {"teacher": "mixture", "parts": [{"weight": weight, **part.facts()} for weight, part in parts]}


def mix(log_probs: Sequence[np.ndarray], log_weights: np.ndarray) -> np.ndarray:
    """log Σ_m w_m exp(log_probs_m), element by element."""
    return np.logaddexp.reduce([one + weight for one, weight in zip(log_probs, log_weights, strict=True)])


def mix_codewords(log_probs: Sequence[np.ndarray], log_weights: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Codeword labels of a mixture from those of its parts.

    P(c | prefix) = Σ_m w_m P_m(prefix) P_m(c | prefix) / Σ_m w_m P_m(prefix), and P_m(prefix) is the product of the
    part's own labels along the target.

    Args:
        log_probs: of each part [n, levels, V].
        log_weights: log w_m.
        targets: columns of the targets' codewords in V [n, levels].

    Returns:
        float32 [n, levels, V].
    """
    weighted, prefixes = [], []
    for one, weight in zip(log_probs, log_weights, strict=True):
        along = np.take_along_axis(one, targets[..., None], axis=2)[..., 0].astype(float)
        prefix = weight + np.pad(np.cumsum(along, axis=1)[:, :-1], ((0, 0), (1, 0)))  # before the level [n, levels]
        prefixes.append(prefix)
        weighted.append(one + prefix[..., None])
    return (np.logaddexp.reduce(weighted) - np.logaddexp.reduce(prefixes)[..., None]).astype(np.float32)


def distinct(items: np.ndarray) -> np.ndarray:
    """Each row's distinct items in ascending order, padded with -1 [n, width] → [n, at most width]."""
    ordered = np.sort(items, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = PAD
    order = np.argsort(ordered == PAD, axis=1, kind="stable")
    return np.take_along_axis(ordered, order, axis=1)[:, : max((ordered != PAD).sum(1).max(), 1)]


def _scores(part: Labeller, labels: Labels, examples: Examples, items: np.ndarray) -> np.ndarray:
    """`part.log_prob`, asked for those items alone that its own labels do not score already."""
    out = np.full(items.shape, -np.inf)
    missing = items != PAD
    for candidate, score in zip(labels.candidates.T, labels.scores.T, strict=True):
        here = (items == candidate[:, None]) & missing
        out[here] = np.broadcast_to(score[:, None], items.shape)[here]
        missing &= ~here
    if missing.any():
        left = np.argsort(~missing, axis=1, kind="stable")[:, : missing.sum(1).max()]
        asked = np.where(np.take_along_axis(missing, left, axis=1), np.take_along_axis(items, left, axis=1), PAD)
        found = part.log_prob(examples, asked)
        rows = np.arange(len(items))[:, None]
        out[rows, left] = np.where(asked != PAD, found, out[rows, left])
    return out
