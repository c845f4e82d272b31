"""Splits of the interactions: by time, and users into folds for cross-fitting."""

from __future__ import annotations

import numpy as np

from distill.runtime.errors import UserError

MIN_LENGTH = 3  # leave-one-out: one item to train on, one to validate, one to test


MIN_LENGTH_CUT = 2  # split by time: a history and a target


def assign_folds(users: np.ndarray, folds: int) -> np.ndarray:
    """The fold of each user number, 0 … folds − 1: always the same, and as good as random [n]."""
    mixed = users.astype(np.uint64) * np.uint64(2654435761) % np.uint64(1 << 32)  # Knuth's multiplicative hash
    return (mixed * np.uint64(folds) >> np.uint64(32)).astype(np.int64)


def cut_by_time(
    times: np.ndarray, offsets: np.ndarray, valid_from: float, test_from: float
) -> tuple[np.ndarray, tuple[int, int]]:
    """Where the training and the validation part of each sequence end, if time is cut at the same moments for all.

    Args:
        times: seconds since 1970, in time order within a sequence [interactions].
        offsets: where each sequence starts [users + 1].
        valid_from: first moment of the validation part; below 1: that share of the interactions comes before.
        test_from: first moment of the test part, likewise.

    Returns:
        ends [users, 2], and the two moments in seconds.

    Raises:
        UserError: a part would be without targets.
    """
    ordered = np.sort(times)
    moments = [
        int(ordered[min(int(cut * len(ordered)), len(ordered) - 1)]) if 0 < cut < 1 else int(cut)
        for cut in (valid_from, test_from)
    ]
    before = [np.concatenate([[0], np.cumsum(times < moment)]) for moment in moments]
    train, valid = (np.diff(count[offsets]) for count in before)
    lengths = np.diff(offsets)
    for part, start, end in (("training", 0, train), ("validation", train, valid), ("test", valid, lengths)):
        if not (end > np.maximum(start, 1)).any():
            raise UserError(
                f"global_cut at {date(moments[0])} and {date(moments[1])}: the {part} part has no target with an item "
                f"before it; the interactions run from {date(ordered[0])} to {date(ordered[-1])}. "
                "Choose other cuts with --valid_from and --test_from."
            )
    return np.stack([train, valid], axis=1), (moments[0], moments[1])


def date(seconds: int) -> str:
    """Seconds since 1970 as one reads them."""
    return f"{np.datetime64(int(seconds), 's')} UTC"
