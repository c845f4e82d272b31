"""Withhold items from training, so that recommendations of items without any interactions can be measured.

A withheld item stays in the catalogue, with its text and its semantic ID. Its interactions are removed from the
training part of every sequence; as targets of validation and test they remain.
"""

from __future__ import annotations

import numpy as np

from distill.data.splits import has_targets, name_empty_part
from distill.runtime.errors import UserError

STREAM = 4  # random stream of the seed; the demo's simulator uses 1 to 3


def draw_items(n_items: int, share: float, seed: int) -> np.ndarray:
    """Draw the withheld items: at least one, uniformly, always the same for a seed.

    Args:
        n_items: size of the catalogue.
        share: share of the items, above 0 and below 1.
        seed: any integer >= 0.

    Returns:
        Whether each item is withheld [n_items] (bool).
    """
    withheld = np.zeros(n_items, dtype=bool)
    count = max(1, round(share * n_items))
    withheld[np.random.default_rng([seed, STREAM]).permutation(n_items)[:count]] = True
    return withheld


def remove_from_training(
    values: np.ndarray, offsets: np.ndarray, ends: np.ndarray, withheld: np.ndarray, min_train: int
) -> tuple[np.ndarray, np.ndarray]:
    """Remove withheld items from the training part of every sequence; all other interactions remain.

    Users are left out if the removal leaves them fewer than `min_train` training interactions, or fewer than two
    interactions in all.

    Args:
        values: item numbers of all users, one user after the other, each in time order [n].
        offsets: start of each sequence [users + 1].
        ends: positions in each sequence where its training part and its validation part end [users, 2].
        withheld: whether each item is withheld [n_items].
        min_train: training interactions that a user must have: 1 for leave-one-out, 0 for a split by time.

    Returns:
        Whether each interaction remains [n], and the ends of the users who remain [remaining users, 2].

    Raises:
        UserError: training, validation or test would have no target left.
    """
    keep, new_ends, new_lengths = mark_remaining(values, offsets, ends, withheld, min_train)
    check_targets(has_targets(new_ends, new_lengths), withheld)
    return keep, new_ends


def mark_remaining(
    values: np.ndarray, offsets: np.ndarray, ends: np.ndarray, withheld: np.ndarray, min_train: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mark what remains without the withheld items; arguments as `remove_from_training`.

    Returns:
        Whether each interaction remains [n]; of the users who remain, the ends [users, 2] and the lengths [users].
    """
    lengths = np.diff(offsets)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    is_training = np.arange(len(values)) - offsets[owners] < ends[owners, 0]
    is_removed = is_training & withheld[values]
    removed = np.bincount(owners[is_removed], minlength=len(lengths))
    remains = (removed == 0) | ((ends[:, 0] - removed >= min_train) & (lengths - removed >= 2))
    new_ends, new_lengths = (ends - removed[:, None])[remains], (lengths - removed)[remains]
    return remains[owners] & ~is_removed, new_ends, new_lengths


def check_targets(has_target: np.ndarray, withheld: np.ndarray) -> None:
    """Refuse a choice of withheld items that leaves training, validation or test without targets.

    Args:
        has_target: of the three parts, as `has_targets` returns it.
        withheld: whether each item is withheld [n_items].

    Raises:
        UserError: names the first part without targets.
    """
    part = name_empty_part(has_target)
    if part:
        raise UserError(
            f"withhold: without {withheld.sum():,} of the {len(withheld):,} items the {part} part has no target left. "
            "Choose a smaller share."
        )
