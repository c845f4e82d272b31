"""Random changes of histories: drop, reverse, shuffle. Sequences are padded with PAD on the right [rows, items]."""

from __future__ import annotations

import numpy as np

from distill.data.dataset import PAD


def reverse_and_shuffle(
    sequences: np.ndarray, reverse: float, distance: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Reverse each row with probability `reverse`, then move its items by at most `distance` places.

    Returns:
        The sequences, and which rows were reversed [rows].
    """
    rows, width = sequences.shape
    present, column = sequences != PAD, np.arange(width, dtype=float)
    is_reversed = rng.random(rows) < reverse
    key = np.where(is_reversed[:, None], -column, column) + (distance + 1) * rng.random((rows, width))
    order = np.argsort(np.where(present, key, np.inf), axis=1, kind="stable")
    return np.take_along_axis(sequences, order, axis=1), is_reversed


def drop_items(sequences: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Drop each item with this probability; a row keeps its last item if no other is left."""
    present = sequences != PAD
    keep = present & (rng.random(sequences.shape) >= probability)
    keep[np.arange(len(keep)), present.sum(1) - 1] |= ~keep.any(1)
    return _close_gaps(sequences, keep)


def drop_items_with_targets(
    sequences: np.ndarray, rows: np.ndarray, places: np.ndarray, probability: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drop items from sequences that hold the targets.

    A target that is dropped, or left without history, is no longer an example. If none would be left, the last one
    is kept, with the item before it: a batch needs an example.

    Args:
        sequences: see above.
        rows, places: where each example's target is [n].
        probability: of each item.
        rng: random generator.

    Returns:
        The sequences, the targets' new places [n], and which examples remain [n].
    """
    keep = (sequences != PAD) & (rng.random(sequences.shape) >= probability)
    if not _remaining(keep, rows, places).any():
        keep[rows[-1], places[-1] - 1 : places[-1] + 1] = True
    before = np.cumsum(keep, axis=1) - keep
    return _close_gaps(sequences, keep), before[rows, places], _remaining(keep, rows, places)


def _remaining(keep: np.ndarray, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Tell which targets are kept with an item before them [n]."""
    return keep[rows, places] & (places > keep.argmax(1)[rows])


def _close_gaps(sequences: np.ndarray, keep: np.ndarray) -> np.ndarray:
    order = np.argsort(~keep, axis=1, kind="stable")
    return np.take_along_axis(np.where(keep, sequences, PAD), order, axis=1)
