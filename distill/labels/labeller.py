"""The contract of a teacher: what the export asks of it (`LabelRequest`) and what it answers (`Labels`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from distill.data.dataset import PAD, Examples

Progress = Callable[[int], object]  # told how many examples have been labelled since it was last told


@dataclass(frozen=True)
class LabelRequest:
    """What is asked.

    Attributes:
        width: beams.
        keep: candidates kept after correction.
        exclude_bought: leave items of the history out of the candidates.
        scope: "level": each position's own codewords; "all": those of all levels.
        constrained: beams of valid IDs only; otherwise Correct drops the invalid ones (paper 3.2).
    """

    width: int = 25
    keep: int = 16
    exclude_bought: bool = True
    scope: str = "level"
    constrained: bool = True


@dataclass(frozen=True)
class Labels:
    """What a teacher says about n examples.

    Attributes:
        candidates: item numbers, the reference first, padded with -1 [n, keep].
        scores: their log P(v|S), −∞ for padding [n, keep].
        log_probs: float32 teacher-forced log-probabilities over the teacher's whole vocabulary [n, levels, V]; V is
            codebook_size, or levels · codebook_size under scope "all"; what a row lacks to 1 is mass on other tokens.
        ranks: place of the reference among the beams from 0, -1 where it is in none [n]; None: `scores` must tell.
        invalid: how many of an example's beams are no item's ID [n]; None: none.
    """

    candidates: np.ndarray
    scores: np.ndarray
    log_probs: np.ndarray
    ranks: np.ndarray | None = None
    invalid: np.ndarray | None = None


class Labeller(Protocol):
    """A teacher. RankedLists depend on the examples alone, not on those labelled with them."""

    def label(self, examples: Examples, ask: LabelRequest, progress: Progress) -> Labels:
        """Labels of n examples."""

    def log_prob(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """Exact log P(v|S) of given items, −∞ for -1; both [n, k]. Mixtures need it."""

    def facts(self) -> dict:
        """What the set's index says of the labeller: engine, version, dtype and the like; values that JSON can hold."""


def correct(
    beams: np.ndarray, scores: np.ndarray, targets: np.ndarray, target_scores: np.ndarray, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """Equation (15)'s Correct: the reference first, then the beams in order without it and without invalid ones.

    Args:
        beams: item numbers, -1 for none [n, width].
        scores: theirs [n, width].
        targets: the references [n].
        target_scores: theirs [n].
        keep: candidates kept.

    Returns:
        Candidates, padded with -1, and their scores, both [n, keep].
    """
    scores = np.where((beams == targets[:, None]) | (beams == PAD), -np.inf, scores)
    gone = ~np.isfinite(scores)
    order = np.argsort(gone, axis=1, kind="stable")
    rest = np.take_along_axis(np.where(gone, PAD, beams), order, axis=1)
    candidates = np.concatenate([targets[:, None], rest], axis=1)[:, :keep]
    scores = np.concatenate([target_scores[:, None], np.take_along_axis(scores, order, axis=1)], axis=1)[:, :keep]
    missing = max(keep - candidates.shape[1], 0)
    candidates = np.pad(candidates, ((0, 0), (0, missing)), constant_values=PAD)
    return candidates, np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)


def places(lists: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Place of each target in its list, -1 where it is not there [n]."""
    found = lists == targets[:, None]
    return np.where(found.any(1), found.argmax(1), -1).astype(np.int32)


def joined(parts: Sequence[Labels], order: np.ndarray | None = None) -> Labels:
    """Labels of several sets of examples as one, in the order asked for."""
    columns = {}
    for name in (field.name for field in fields(Labels)):
        values = [getattr(part, name) for part in parts]
        known = all(value is not None for value in values)
        columns[name] = np.concatenate(values)[slice(None) if order is None else order] if known else None
    return Labels(**columns)


def silent(done: int) -> None:
    """A progress that nobody sees."""
