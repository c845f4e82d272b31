"""What all readers share: their options, their result, and checks of folders and texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from distill.data.dataset import TEXT_COLUMNS
from distill.data.sources.numbering import is_blank
from distill.runtime.errors import UserError

MAX_SECONDS = 2.0**63  # times are stored as int64


@dataclass(frozen=True)
class Options:
    """Settings of the readers; each reader uses those that concern its format.

    Attributes:
        seed: seed of the demo's shop and of its users.
        users: number of users of the demo.
        empty_text: what to do with items without text, where the source has texts: refuse, keep or drop them.
        user_column, item_column, time_column: column names of tables; time_column None: rows are in time order.
        rating_column: column name of the ratings, read for `min_rating` only.
        min_rating: leave out interactions rated lower.
        duplicates: keep repeated interactions; or leave out "exact" ones (user, item and time agree); or keep only a
            user's "first" interaction with an item.
        user_core, item_core: leave out users and items with fewer interactions, until nothing changes.
        clean_html: remove tags and entities from the texts.
        max_bad_lines: malformed lines to leave out before reading stops (JSON lines).
    """

    seed: int = 0
    users: int = 2000
    empty_text: Literal["error", "keep", "drop"] = "error"
    user_column: str = "user_id"
    item_column: str = "item_id"
    time_column: str | None = "timestamp"
    rating_column: str = "rating"
    min_rating: float | None = None
    duplicates: Literal["keep", "exact", "first"] = "keep"
    user_core: int = 0
    item_core: int = 0
    clean_html: bool = False
    max_bad_lines: int = 10


@dataclass(frozen=True)
class Source:
    """Interactions as a reader returns them; sequence u is `values[offsets[u]:offsets[u + 1]]`.

    Attributes:
        items: item_id and any of title, description, brand, categories (strings); row = item number.
        user_ids: strings, one per user.
        values: item numbers of all users, one user after the other, each in time order [n].
        offsets: start of each sequence [users + 1].
        times: seconds since 1970 [n], or None if the format has none.
        ratings: [n], or None if they were not read.
        parts: of a source that is split already: 0 training, 1 validation, 2 test; ascending in a sequence [n]. None:
            it is not.
        origin: where the interactions come from, for messages.
        extra_files: writes further files of the data set into a given folder.
    """

    items: pa.Table
    user_ids: pa.Array
    values: np.ndarray
    offsets: np.ndarray
    times: np.ndarray | None = None
    ratings: np.ndarray | None = None
    origin: str = ""
    parts: np.ndarray | None = None
    extra_files: Callable[[Path], None] | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Interactions per user [users]."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """User number of each interaction [n]."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int32), self.lengths)

    def take(self, rows: np.ndarray) -> Source:
        """Keep only these interactions (ascending numbers) and the users who have one of them."""
        counts = np.bincount(self.owners[rows], minlength=len(self.lengths))
        users = np.flatnonzero(counts)
        return replace(
            self,
            user_ids=self.user_ids.take(pa.array(users)),
            values=self.values[rows],
            offsets=np.concatenate([[0], np.cumsum(counts[users])]),
            times=None if self.times is None else self.times[rows],
            ratings=None if self.ratings is None else self.ratings[rows],
            parts=None if self.parts is None else self.parts[rows],
        )

    def take_items(self, kept: np.ndarray) -> Source:
        """Keep only these items (ascending numbers) in the catalogue; they must include all items with interactions."""
        number = np.full(self.items.num_rows, -1)
        number[kept] = np.arange(len(kept))
        return replace(self, items=self.items.take(pa.array(kept)), values=number[self.values])


def group(
    items: pa.Table,
    users: pa.DictionaryArray,
    numbers: np.ndarray,
    times: np.ndarray | None,
    ratings: np.ndarray | None = None,
    origin: str = "",
    where: Callable[[int], str] | None = None,
) -> Source:
    """Group rows of interactions into sequences; rows of equal time keep their order.

    Args:
        items: the catalogue.
        users: user ids [n], as `need_ids` gives them.
        numbers: item numbers [n].
        times: seconds [n], or None if the rows are in time order.
        ratings: [n] or None.
        origin: where the rows come from.
        where: row -> place in a file, for messages (default: origin).

    Returns:
        A source with the users in order of first appearance.

    Raises:
        UserError: a time that is none.
    """
    if times is not None:
        check_times(times, where or (lambda row: origin))
    codes = users.indices.to_numpy()
    order = np.argsort(codes, kind="stable") if times is None else _by_time(codes, times)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(users.dictionary)))])
    return Source(
        items,
        users.dictionary,
        numbers[order],
        offsets,
        None if times is None else times[order].astype(np.int64),
        None if ratings is None else ratings[order],
        origin,
    )


def check_times(times: np.ndarray, where: Callable[[int], str]) -> None:
    """Refuse times that are NaN, infinite or too large to be stored, which would be sorted to a user's end.

    Args:
        times: seconds [n].
        where: row -> place in a file, for the message.

    Raises:
        UserError: names the first such row.
    """
    bad = np.flatnonzero(~(np.abs(times) < MAX_SECONDS))
    if len(bad):
        raise bad_time(where(int(bad[0])), times[bad[0]], len(bad))


def bad_time(place: str, value: float, count: int) -> UserError:
    """Make the error that names the first of `count` times that cannot be stored."""
    return UserError(f"{place}: expected a time in seconds, got {value} ({count} such rows). Mend or remove the line.")


def check_ratings(ratings: np.ndarray, where: Callable[[int], str]) -> None:
    """Refuse ratings that are NaN or infinite, which no --min_rating can be compared with.

    Args:
        ratings: [n].
        where: row -> place in a file, for the message.

    Raises:
        UserError: names the first such row.
    """
    bad = np.flatnonzero(~np.isfinite(ratings))
    if len(bad):
        raise bad_rating(where(int(bad[0])), ratings[bad[0]], len(bad))


def bad_rating(place: str, value: float, count: int) -> UserError:
    """Make the error that names the first of `count` ratings that are NaN or infinite."""
    return UserError(
        f"{place}: expected a rating as a number, got {value} ({count} such rows). Mend or remove the line."
    )


def _by_time(codes: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Order rows by code and, within a code, by time; stable."""
    seconds = times.astype(np.int64)
    span = int(seconds.max(initial=0)) - int(seconds.min(initial=0)) + 1
    if (seconds != times).any() or span * (int(codes.max(initial=0)) + 1) >= 2**63:
        return np.lexsort((times, codes))
    # one sort of a combined key is faster than two
    return np.argsort(codes * np.int64(span) + (seconds - seconds.min(initial=0)), kind="stable")


def without_text(items: pa.Table) -> np.ndarray:
    """Mark items all of whose text columns are blank [n_items]; none if the catalogue has no text columns."""
    names = set(TEXT_COLUMNS) & set(items.column_names)
    blank = np.full(items.num_rows, bool(names))
    for name in names:
        blank &= is_blank(items[name])
    return blank


def check_texts(items: pa.Table, where: Callable[[int], str], empty_text: Literal["error", "keep", "drop"]) -> None:
    """Refuse items all of whose text columns are blank.

    Args:
        items: the catalogue; has at least one text column.
        where: row of the catalogue -> place in a file, for the message.
        empty_text: "keep" and "drop" accept such items here.

    Raises:
        UserError: names the first such item and counts them.
    """
    if empty_text != "error":
        return
    rows = np.flatnonzero(without_text(items))
    if len(rows):
        first = int(rows[0])
        raise UserError(
            f"{where(first)}: expected a text for every item, found none for item "
            f"{items['item_id'][first].as_py()!r} ({len(rows)} such items). "
            "Add the texts, or go on without them: --empty_text keep (or drop, which leaves such items out)."
        )


def find_file(folder: Path, pattern: str, needed: bool = True) -> Path | None:
    """Find the single file in `folder` that matches a pattern.

    Args:
        folder: must exist.
        pattern: as for glob.
        needed: refuse if there is none.

    Raises:
        UserError: no such folder, no such file (if needed), or several.
    """
    if not folder.is_dir():
        raise UserError(f"No folder {folder}: expected one that holds {pattern}. Name it with --input.")
    matches = sorted(folder.glob(pattern))
    if len(matches) > 1:
        names = ", ".join(path.name for path in matches)
        raise UserError(f"{folder}: expected one file {pattern}, found {names}. Move the others away.")
    if not matches and needed:
        present = sorted(path.name for path in folder.iterdir())[:10]
        raise UserError(f"{folder}: missing file {pattern}; found {', '.join(present) or 'nothing'}. Check --input.")
    return matches[0] if matches else None
