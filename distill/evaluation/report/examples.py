"""Recommendations with titles, for some of the evaluated users."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from distill.evaluation.ranked_lists import ASKED
from distill.evaluation.report.files import remake_hint
from distill.evaluation.report.rows import read_rows
from distill.evaluation.report.systems import NO_TEACHER, floor_name
from distill.runtime.artifacts import Artifact
from distill.runtime.errors import UserError
from distill.runtime.parquet import read_parquet

HISTORY_SHOWN, ITEMS_SHOWN, SYSTEMS_SHOWN = 6, 10, 3
TITLE_LENGTH = 90


class Item(NamedTuple):
    """An item's title, in full and shortened, and whether it is the target."""

    full: str
    short: str
    is_hit: bool = False


class Recommendation(NamedTuple):
    """A system's list for one user; `rank` is the target's, None if the list lacks it."""

    system: str
    rank: int | None
    ranked: list[Item]


@dataclass(frozen=True)
class Example:
    """One user."""

    user: int
    target: Item
    history: list[Item]
    """The last items."""
    earlier: int
    """How many items the history has before these."""
    recommendations: list[Recommendation]


class Titles:
    """Titles of the catalogue; items without a title show their ID."""

    def __init__(self, dataset: Artifact, evaluation: Artifact):
        items = read_parquet(dataset.folder / "items.parquet", ("item_id", "title"))
        self.ids, self.titles = items["item_id"].to_pylist(), items["title"].to_pylist()
        self.evaluation = evaluation

    def item(self, number: int, target: int | None = None) -> Item:
        """Look an item up.

        Raises:
            UserError: the number is outside the catalogue.
        """
        if not 0 <= number < len(self.ids):
            folder = self.evaluation.folder
            raise UserError(
                f"{folder / 'lists.parquet'} names item {number}, but the catalogue has {len(self.ids)}. "
                f"{remake_hint('evaluation', folder)}"
            )
        full = self.titles[number] or self.ids[number]
        short = textwrap.shorten(full, TITLE_LENGTH, placeholder=" …") or full[:TITLE_LENGTH]
        return Item(full, short, number == target)


def read_examples(count: int, dataset: Artifact, evaluation: Artifact) -> list[Example]:
    """Read the recommendations of users evenly spread over the evaluated ones.

    Args:
        count: of users; no more than were evaluated are returned.
        dataset: holds the titles.
        evaluation: holds the ranked lists.

    Raises:
        UserError: damaged files, or an item outside the catalogue.
    """
    lists = read_parquet(evaluation.folder / "lists.parquet", ASKED)
    titles = Titles(dataset, evaluation)
    names = [name for name in lists.column_names if name not in ASKED]
    preferred = (floor_name(read_rows(evaluation)), NO_TEACHER, "dwr")
    shown = [name for name in preferred if name in names] or names[:SYSTEMS_SHOWN]
    chosen = np.linspace(0, lists.num_rows - 1, min(count, lists.num_rows)).round().astype(np.int64)
    return [_example(row, shown, titles) for row in lists.take(pa.array(chosen)).to_pylist()]


def _example(row: dict, systems: Sequence[str], titles: Titles) -> Example:
    target, history = row["target"], row["history"]
    recommendations = []
    for system in systems:
        items = [item for item in row[system] if item >= 0][:ITEMS_SHOWN]
        rank = items.index(target) + 1 if target in items else None
        recommendations.append(Recommendation(system, rank, [titles.item(item, target) for item in items]))
    return Example(
        user=row["user"],
        target=titles.item(target),
        history=[titles.item(item) for item in history[-HISTORY_SHOWN:]],
        earlier=max(0, len(history) - HISTORY_SHOWN),
        recommendations=recommendations,
    )
