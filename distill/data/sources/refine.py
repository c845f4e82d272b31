"""Filter interactions after reading: ratings, texts, repetitions, rare users and items (k-core)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pyarrow as pa

from distill.data.dataset import TEXT_COLUMNS
from distill.data.sources.base import Options, Source, check_texts, without_text
from distill.data.sources.cleaning import clean_html
from distill.runtime.errors import UserError
from distill.runtime.logs import log


def refine(source: Source, options: Options) -> Source:
    """Leave out low ratings, items without text, repetitions, then rare users and items, as the options say.

    A second call changes nothing. The order of the remaining interactions is kept. Item numbers are kept too, except
    that a k-core and `empty_text` "drop" renumber the remaining items.

    Raises:
        UserError: an option needs ratings or times that the source does not have, or nothing is left.
    """
    if options.min_rating is not None:
        if source.ratings is None:
            raise UserError(f"{source.origin}: there are no ratings to compare with --min_rating {options.min_rating}.")
        source = _keep(source, source.ratings >= options.min_rating, f"rated below {options.min_rating:g}")
    if options.clean_html:
        source = replace(source, items=clean_texts(source.items))
        check_texts(source.items, lambda item: source.origin, options.empty_text)
    if options.empty_text == "drop" and (blank := without_text(source.items)).any():
        source = _keep(source, ~blank[source.values], f"with {blank.sum():,} items that have no text")
        source = source.take_items(np.flatnonzero(~blank))
    if options.duplicates != "keep":
        source = _keep(source, ~repeated(source, options.duplicates), f"repeated ({options.duplicates})")
    if options.user_core > 0 or options.item_core > 0:
        rows = k_core(source.owners, source.values, options.user_core, options.item_core)
        inside = np.zeros(len(source.values), dtype=bool)
        inside[rows] = True
        source = _keep(source, inside, f"outside the {options.user_core}-core (items: {options.item_core})")
        if options.item_core > 0:
            bought = np.bincount(source.values, minlength=source.items.num_rows) > 0
            source = source.take_items(np.flatnonzero(bought)) if not bought.all() else source
    return source


def clean_texts(items: pa.Table) -> pa.Table:
    """Remove tags and entities from the texts of a catalogue."""
    for name in TEXT_COLUMNS:
        if name in items.column_names:
            items = items.set_column(items.column_names.index(name), name, clean_html(items[name]))
    return items


def _keep(source: Source, keep: np.ndarray, why: str) -> Source:
    if keep.all():
        return source
    report_left_out(source.origin, len(keep) - int(keep.sum()), len(keep), why)
    return source.take(np.flatnonzero(keep))


def report_left_out(origin: str, left_out: int, total: int, why: str) -> None:
    """Log how many of `total` interactions were left out, and why.

    Raises:
        UserError: all of them.
    """
    if left_out == total:
        raise UserError(f"{origin}: all {total:,} interactions left are {why}; nothing remains.")
    log.info(f"{origin}: left out {left_out:,} of {total:,} interactions, {why}")


def repeated(source: Source, duplicates: Literal["exact", "first"]) -> np.ndarray:
    """Mark interactions that repeat an earlier one of the same user and item ("exact": and time) [n].

    Raises:
        UserError: "exact" without times.
    """
    if duplicates == "exact" and source.times is None:
        raise UserError(f"{source.origin}: there are no times to compare for --duplicates exact; use first or keep.")
    pairs = source.owners * np.int64(source.items.num_rows) + source.values
    order = np.argsort(pairs, kind="stable")  # within a pair still in time order
    follows_equal = pairs[order][1:] == pairs[order][:-1]
    if duplicates == "exact":
        follows_equal &= source.times[order][1:] == source.times[order][:-1]
    is_repeated = np.zeros(len(pairs), dtype=bool)
    is_repeated[order[1:][follows_equal]] = True
    return is_repeated


def k_core(users: np.ndarray, items: np.ndarray, user_core: int, item_core: int) -> np.ndarray:
    """Find the largest set of interactions in which every user and every item has enough of them.

    Args:
        users: user numbers [n].
        items: item numbers [n].
        user_core: interactions that a user must have.
        item_core: interactions that an item must have.

    Returns:
        Numbers of the kept rows, ascending. The largest set is unique: a row is removed only if no set that meets the
        condition can contain it.
    """
    rows = np.arange(len(users))
    while True:
        enough = (np.bincount(users) >= user_core)[users] & (np.bincount(items) >= item_core)[items]
        if enough.all():
            return rows
        users, items, rows = users[enough], items[enough], rows[enough]


def without_short_users(source: Source, short_users: Literal["error", "drop"], min_length: int, split: str) -> Source:
    """Refuse or drop users with fewer items than the split needs.

    Args:
        source: the interactions.
        short_users: refuse ("error") or drop such users.
        min_length: items that a user must have.
        split: name of the split, for the message.

    Raises:
        UserError: there are such users and short_users is "error", or no user is left.
    """
    short = np.flatnonzero(source.lengths < min_length)
    if len(short) and short_users == "error":
        user = short[0]
        name, length = source.user_ids[user].as_py(), int(source.lengths[user])
        raise short_user(source.origin, name, length, min_length, split, len(short))
    if len(short) == len(source.lengths):
        raise no_user(source.origin, min_length)
    return source.take(np.flatnonzero(source.lengths[source.owners] >= min_length)) if len(short) else source


def short_user(origin: str, user: str, length: int, min_length: int, split: str, count: int) -> UserError:
    """Make the error that names the first of `count` users with fewer items than the split needs."""
    return UserError(
        f"{origin}: user {user!r} has {length} interactions, {split} needs at least {min_length} ({count} such users). "
        "Remove them, or run with --short_users drop."
    )


def no_user(origin: str, min_length: int) -> UserError:
    """Make the error for a log none of whose users has enough items for the split."""
    return UserError(f"{origin}: no user with at least {min_length} interactions, expected some.")
