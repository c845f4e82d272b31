"""Which targets are labelled, and their division into shards."""

from __future__ import annotations

import numpy as np

from distill.data.dataset import Dataset, Examples
from distill.data.examples import TargetRanges, ragged_range
from distill.labels.config import ExampleSettings, parse_users
from distill.runtime.errors import UserError


def select_targets(dataset: Dataset, settings: ExampleSettings, max_history: int) -> TargetRanges:
    """Select the targets that the settings name.

    Raises:
        UserError: there are none, or a target has no history.
    """
    targets = dataset.targets(settings.split, max_history).of_users(*parse_users(settings.users)).head(settings.limit)
    if not len(targets):
        selected = f" of users {settings.users}" if settings.users else ""
        raise UserError(f"The {settings.split} split has no examples{selected}.")
    if (targets.starts == 0).any():  # a beam search needs a prompt
        raise UserError(f"User {targets.users[targets.starts == 0][0]} has a target without any history.")
    return targets


def sample_of_users(targets: TargetRanges, size: int) -> Examples:
    """Make all examples of randomly chosen users, about `size` in all; always the same ones."""
    order = np.random.default_rng(0).permutation(len(targets.users))
    n_users = 1 + np.searchsorted(np.cumsum(targets.counts[order]), size)
    chosen = np.sort(order[:n_users])
    user, place = ragged_range(targets.counts[chosen])
    rows = (targets.ends - targets.counts)[chosen][user] + place
    return targets.take(rows[:size])


def shard_bounds(ends: np.ndarray, shard_rows: int) -> np.ndarray:
    """Divide targets into shards of about `shard_rows` rows, with whole users and at least one.

    Args:
        ends: targets of the users up to and with each one [users].
        shard_rows: most rows of a shard of several users.

    Returns:
        First row of each shard, and the number of targets [shards + 1].
    """
    ends = np.append(0, ends)
    bounds = [0]
    while bounds[-1] < ends[-1]:
        last = np.searchsorted(ends, bounds[-1] + shard_rows, side="right") - 1  # the last end that still fits
        bounds.append(int(ends[max(last, np.searchsorted(ends, bounds[-1], side="right"))]))
    return np.array(bounds)
