"""Splits: interactions by time, and users into folds for cross-fitting."""

from __future__ import annotations

import numpy as np

from distill.runtime.errors import UserError

MIN_LENGTH = 3  # leave-one-out: one item to train on, one to validate, one to test
MIN_LENGTH_CUT = 2  # split by time: a history and a target
PARTS = ("training", "validation", "test")


def assign_folds(users: np.ndarray, folds: int) -> np.ndarray:
    """Assign each user number to a fold, 0 … folds − 1; deterministic and evenly spread [n]."""
    mixed = users.astype(np.uint64) * np.uint64(2654435761) % np.uint64(1 << 32)  # Knuth's multiplicative hash
    return (mixed * np.uint64(folds) >> np.uint64(32)).astype(np.int64)


def check_folds(folds: int, fold: int) -> None:
    """Refuse a fold that there is not.

    Args:
        folds: how many; 0: no cross-fitting.
        fold: which one, from 0.

    Raises:
        UserError: a single fold, or a number too large.
    """
    if folds == 1 or fold >= max(folds, 1):
        raise UserError(f"--fold {fold} of --folds {folds}; expected 2 folds or more, counted from 0.")


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
    ends = cut_positions(times, offsets, (moments[0], moments[1]))
    part = part_without_target(ends, np.diff(offsets))
    if part:
        raise empty_part(part, (moments[0], moments[1]), ordered[0], ordered[-1])
    return ends, (moments[0], moments[1])


def published_cut(parts: np.ndarray, offsets: np.ndarray, origin: str) -> np.ndarray:
    """Find where training and validation end in sequences that are split already.

    Args:
        parts: 0 training, 1 validation, 2 test; ascending in a sequence [interactions].
        offsets: start of each sequence [users + 1].
        origin: where they come from, for the message.

    Returns:
        [users, 2].

    Raises:
        UserError: a part has no target.
    """
    ends = cut_positions(parts, offsets, (1, 2))
    part = part_without_target(ends, np.diff(offsets))
    if part:
        raise UserError(f"{origin}: the {part} part has no target with an item before it.")
    return ends


def cut_positions(times: np.ndarray, offsets: np.ndarray, moments: tuple[int, int]) -> np.ndarray:
    """Count the interactions of each sequence before two moments [users, 2]; arguments as `cut_by_time`."""
    before = [np.concatenate([[0], np.cumsum(times < moment)]) for moment in moments]
    return np.stack([np.diff(count[offsets]) for count in before], axis=1)


def empty_part(part: str, moments: tuple[int, int], first: int, last: int) -> UserError:
    """Make the error for cuts that leave a part without targets; `first` and `last` are the log's times."""
    return UserError(
        f"global_cut at {format_time(moments[0])} and {format_time(moments[1])}: the {part} part has no target "
        f"with an item before it; the interactions run from {format_time(first)} to {format_time(last)}. "
        "Choose other cuts with --valid_from and --test_from."
    )


def part_without_target(ends: np.ndarray, lengths: np.ndarray) -> str | None:
    """Name the first part without targets, or None; arguments as `has_targets`."""
    return name_empty_part(has_targets(ends, lengths))


def has_targets(ends: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Tell whether training, validation and test have a target [3] (bool); a sequence's first item is never one.

    Args:
        ends: where training and validation end in each sequence [users, 2].
        lengths: of the sequences [users].
    """
    train, valid = ends.T
    parts = ((0, train), (train, valid), (valid, lengths))
    return np.array([bool((end > np.maximum(start, 1)).any()) for start, end in parts])


def name_empty_part(has_target: np.ndarray) -> str | None:
    """Name the first part without targets, or None; the argument is what `has_targets` returns."""
    return next((part for part, full in zip(PARTS, has_target, strict=True) if not full), None)


def format_time(seconds: int) -> str:
    """Format seconds since 1970 as a date and time (UTC)."""
    return f"{np.datetime64(int(seconds), 's')} UTC"
