"""The rows of evaluations: read, checked, and averaged over runs with different seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from distill.evaluation.report.columns import ABOVE_FLOOR, COLUMNS, DETAILS, TIES_WON
from distill.evaluation.report.files import read_json, remake_hint
from distill.evaluation.report.systems import Row
from distill.runtime.artifacts import Artifact
from distill.runtime.errors import UserError

NOT_AVERAGED = ("users", "cold_users", "seed", "parameters", "exclude_bought")  # facts, not measurements


def read_rows(evaluation: Artifact) -> list[Row]:
    """Read the rows of an evaluation's metrics.json, one per system.

    Raises:
        UserError: missing or damaged file, a row without a system, a metric that is not a number.
    """
    path = evaluation.folder / "metrics.json"
    rows = read_json(path, "evaluation")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        hint = remake_hint("evaluation", evaluation.folder)
        raise UserError(f"{path} should hold a list of rows, one per system. {hint}")
    keys = [column.key for column in COLUMNS + DETAILS] + [TIES_WON]
    names = set()
    for number, row in enumerate(rows):
        name = row.get("system")
        if not isinstance(name, str) or name in names:
            raise UserError(f"{path}, row {number}: expected a new name of a system, got {name!r}.")
        names.add(name)
        for key in keys:
            if not isinstance(row.get(key), int | float | None):
                raise UserError(f"{path}, row {number} ({name}): {key} should be a number, got {row[key]!r}.")
    return rows


def merge_seeds(runs: Sequence[list[Row]]) -> list[Row]:
    """Average each system over the runs: means, KEY_std (sample standard deviation) and `seeds`.

    The rows of a single run are returned unchanged.

    Raises:
        UserError: a system was evaluated on other users or another split in one of the runs.
    """
    if len(runs) == 1:
        return runs[0]
    by_system: dict[str, list[Row]] = {}
    for row in (row for rows in runs for row in rows):
        by_system.setdefault(row["system"], []).append(row)
    return [_average(system, rows) for system, rows in by_system.items()]


def _average(system: str, rows: list[Row]) -> Row:
    first = rows[0]
    for row in rows:
        for key in ("split", "users"):
            if row.get(key) != first.get(key):
                raise UserError(f"{system}: {key} {first.get(key)!r} in one run, {row.get(key)!r} in another.")
    merged = dict(first)
    for key, value in first.items():
        values = [row[key] for row in rows if isinstance(row.get(key), int | float)]
        if key in NOT_AVERAGED or not values or isinstance(value, str):
            continue
        merged[key] = statistics.fmean(values)
        if len(values) > 1:
            merged[f"{key}_std"] = statistics.stdev(values)
    merged.pop(ABOVE_FLOOR, None)  # it describes one run; the report tests all runs together
    if isinstance(first.get("by_popularity"), list):
        merged["by_popularity"] = _average_groups([row["by_popularity"] for row in rows])
    return merged | {"seeds": [row.get("seed") for row in rows]}


def _average_groups(runs: list[list[Row]]) -> list[Row]:
    """Average the metrics of each popularity group; sizes are those of the first run."""
    return [
        {
            key: statistics.fmean(group[key] for group in groups) if "@" in key else value
            for key, value in groups[0].items()
        }
        for groups in zip(*runs, strict=True)
    ]
