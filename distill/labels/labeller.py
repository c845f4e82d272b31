"""The interface of a teacher: what the export requests (`LabelRequest`) and what it gets (`Labels`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np

from distill.data.dataset import PAD, Examples

Scope = Literal["level", "all"]
LAST_LAYER = (-1,)
Progress = Callable[[int], object]  # called with the number of examples labelled since the last call


@dataclass(frozen=True)
class LabelRequest:
    """What the export requests of a teacher.

    Attributes:
        width: beam width.
        keep: candidates kept after correction, the reference included.
        exclude_bought: leave items of the history out of the candidates.
        scope: "level": log-probabilities of each position's own level; "all": of the codewords of all levels.
        constrained: search valid IDs only; otherwise Correct drops the invalid ones (paper 3.2).
        features: numbers of a projected hidden state that are kept; 0: none.
        feature_layers: layers whose states are kept, ascending, from 1; LAST_LAYER: the last.
    """

    width: int = 25
    keep: int = 16
    exclude_bought: bool = True
    scope: Scope = "level"
    constrained: bool = True
    features: int = 0
    feature_layers: tuple[int, ...] = LAST_LAYER


@dataclass(frozen=True)
class Labels:
    """A teacher's labels of n examples.

    Attributes:
        candidates: item numbers, the reference first, padded with -1 [n, keep].
        scores: log P(v|S) of the candidates, −∞ for padding [n, keep].
        log_probs: float32 teacher-forced log-probabilities of the codewords [n, levels, V]; V is codebook_size, or
            levels · codebook_size under scope "all". They are normalised over the teacher's whole vocabulary: what a
            row lacks to 1 is the mass of other tokens.
        ranks: rank of the reference among the beams, from 0; -1 where no beam holds it [n]. None: derive it from
            `scores`.
        invalid: beams of each example that are no item's ID [n]; None: none are.
        states: the teacher's hidden states before each codeword, projected, as bytes (`encode_states`)
            [n, levels, layers, features]; None: not asked for.
    """

    candidates: np.ndarray
    scores: np.ndarray
    log_probs: np.ndarray
    ranks: np.ndarray | None = None
    invalid: np.ndarray | None = None
    states: np.ndarray | None = None


class Labeller(Protocol):
    """A teacher. An example's labels do not depend on the examples that are labelled with it."""

    def label(self, examples: Examples, request: LabelRequest, progress: Progress) -> Labels:
        """Label n examples."""

    def log_prob(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """Compute the exact log P(v|S) of given items, −∞ for -1; both [n, k]. Needed in mixtures."""

    def facts(self) -> dict:
        """Describe the labeller for the index: engine, version, dtype and the like, as JSON values."""


def correct(
    beams: np.ndarray, scores: np.ndarray, targets: np.ndarray, target_scores: np.ndarray, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """Apply equation (15)'s Correct: the reference first, then the valid beams without it, in order.

    Args:
        beams: item numbers, -1 for none [n, width].
        scores: of the beams [n, width].
        targets: the references [n].
        target_scores: of the references [n].
        keep: candidates kept.

    Returns:
        Candidates, padded with -1, and their scores, padded with −∞; both [n, keep].
    """
    scores = np.where((beams == targets[:, None]) | (beams == PAD), -np.inf, scores)
    dropped = ~np.isfinite(scores)
    order = np.argsort(dropped, axis=1, kind="stable")
    others = np.take_along_axis(np.where(dropped, PAD, beams), order, axis=1)
    candidates = np.concatenate([targets[:, None], others], axis=1)[:, :keep]
    scores = np.concatenate([target_scores[:, None], np.take_along_axis(scores, order, axis=1)], axis=1)[:, :keep]
    missing = max(keep - candidates.shape[1], 0)
    candidates = np.pad(candidates, ((0, 0), (0, missing)), constant_values=PAD)
    return candidates, np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)


def target_ranks(lists: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Find each target's rank in its list, from 0; -1 where the list lacks it.

    Args:
        lists: item numbers [n, width].
        targets: item numbers [n].

    Returns:
        int32 [n].
    """
    matches = lists == targets[:, None]
    return np.where(matches.any(1), matches.argmax(1), -1).astype(np.int32)


def concatenate_labels(parts: Sequence[Labels], order: np.ndarray | None = None) -> Labels:
    """Join the labels of several sets of examples.

    Args:
        parts: the labels.
        order: rows of the joined labels in the order wanted; None: as they come.
    """
    columns: dict[str, Any] = {}
    for name in (field.name for field in fields(Labels)):
        values = [getattr(part, name) for part in parts]
        known = all(value is not None for value in values)
        columns[name] = np.concatenate(values)[slice(None) if order is None else order] if known else None
    return Labels(**columns)


def no_progress(_: int) -> None:
    """Report nothing."""
