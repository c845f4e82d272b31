"""Which systems of a table learn nothing, and which of them is its floor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill.baselines.names import FLOOR_KEY, NOT_LEARNED, TRANSITIONS

Row = dict[str, Any]  # one system of metrics.json

DEFAULT_FLOOR = TRANSITIONS  # of evaluations whose rows do not name their floor
NO_TEACHER = "tiger"  # the student that learns without a teacher


def floor_name(rows: Sequence[Row]) -> str:
    """Name the system that a learned one must beat; the rows name it under `FLOOR_KEY`."""
    return next((row[FLOOR_KEY] for row in rows if isinstance(row.get(FLOOR_KEY), str)), DEFAULT_FLOOR)


def find_floor(rows: Sequence[Row]) -> Row | None:
    """Return the floor's row, or None if it was not evaluated."""
    name = floor_name(rows)
    return next((row for row in rows if row["system"] == name), None)


def is_learned(row: Row) -> bool:
    """Return True for the teacher, the students and whatever else was trained."""
    return row["system"] not in NOT_LEARNED
