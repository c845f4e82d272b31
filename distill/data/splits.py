"""Splits: interactions by time, and users into folds for cross-fitting."""

from __future__ import annotations

import numpy as np

from distill.runtime.errors import UserError

MIN_LENGTH = 3  # leave-one-out: one item to train on, one to validate, one to test
MIN_LENGTH_CUT = 2  # split by time: a history and a target


def assign_folds(users: np.ndarray, folds: int) -> np.ndarray:
    """Assign each user number to a fold, 0 … folds − 1; deterministic and evenly spread [n]."""
    mixed = users.astype(np.uint64) * np.uint64(2654435761) % np.uint64(1 << 32)  # Knuth's multiplicative hash
    return (mixed * np.uint64(folds) >> np.uint64(32)).astype(np.int64)


def leave_one_out(offsets: np.ndarray) -> np.ndarray:
    """Return the positions in each sequence where its training part and its validation part end.

    The validation target is the item before the last, the test target the last.

    Args:
        offsets: start of each sequence [users + 1].

    Returns:
        [users, 2].
    """
    lengths = np.diff(offsets)
    return np.stack([lengths - 2, lengths - 1], axis=1)


def cut_by_time(
    times: np.ndarray, offsets: np.ndarray, valid_from: float, test_from: float
) -> tuple[np.ndarray, tuple[int, int]]:
    """Cut all sequences at the same two moments.

    Args:
        times: seconds since 1970, in time order within a sequence [interactions].
        offsets: start of each sequence [users + 1].
        valid_from: start of the validation part, in seconds; below 1: that share of the interactions comes before.
        test_from: start of the test part, likewise.

    Returns:
        The positions in each sequence where its training part and its validation part end [users, 2], and the two
        moments in seconds.

    Raises:
        UserError: a part would have no target.
    """
    ordered = np.sort(times)
    moments = [
        int(ordered[min(int(cut * len(ordered)), len(ordered) - 1)]) if 0 < cut < 1 else int(cut)
        for cut in (valid_from, test_from)
    ]
    before = [np.concatenate([[0], np.cumsum(times < moment)]) for moment in moments]
    train, valid = (np.diff(count[offsets]) for count in before)
    ends = np.stack([train, valid], axis=1)
    part = part_without_target(ends, np.diff(offsets))
    if part:
        raise UserError(
            f"global_cut at {format_time(moments[0])} and {format_time(moments[1])}: the {part} part has no target "
            "with an item before it; "
            f"the interactions run from {format_time(ordered[0])} to {format_time(ordered[-1])}. "
            "Choose other cuts with --valid_from and --test_from."
        )
    return ends, (moments[0], moments[1])


def part_without_target(ends: np.ndarray, lengths: np.ndarray) -> str | None:
    """Name the first part without targets, or None; the first item of a sequence is never a target.

    Args:
        ends: where training and validation end in each sequence [users, 2].
        lengths: of the sequences [users].
    """
    train, valid = ends.T
    for part, start, end in (("training", 0, train), ("validation", train, valid), ("test", valid, lengths)):
        if not (end > np.maximum(start, 1)).any():
            return part
    return None


def format_time(seconds: int) -> str:
    """Format seconds since 1970 as a date and time (UTC)."""
    return f"{np.datetime64(int(seconds), 's')} UTC"
