"""The table of a report, independent of how it is rendered, and the sentences around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.baselines.names import ORACLE, VALID_NDCG_KEY
from distill.evaluation.report.columns import ABOVE_FLOOR, COLUMNS, TIES_WON, Column, four_digits
from distill.evaluation.report.notes import readable_note
from distill.evaluation.report.systems import Row, find_floor, is_learned


@dataclass(frozen=True)
class Cell:
    """A value as text."""

    text: str
    """The value, or – if there is none."""
    spread: str = ""
    """Standard deviation over the seeds."""
    best: bool = False
    """Whether it is the best of the learned systems."""
    interval: str = ""
    """95% bootstrap interval over users; only where there is one run."""

    @property
    def with_spread(self) -> str:
        """Value and spread on one line."""
        return f"{self.text} ± {self.spread}" if self.spread else self.text


@dataclass(frozen=True)
class Line:
    """One system's line of the table."""

    system: str
    cells: list[Cell]
    is_floor: bool
    is_bound: bool
    """Whether it is the oracle, the bound for every model."""
    beats_floor: bool

    @property
    def label(self) -> str:
        """The system's name with its mark."""
        return self.system + (" (floor)" if self.is_floor else " ▲" if self.beats_floor else "")


@dataclass(frozen=True)
class Table:
    """Columns that have a value, and one line per system."""

    columns: list[Column]
    lines: list[Line]

    def __bool__(self) -> bool:
        return bool(self.columns)


def build_table(rows: Sequence[Row], columns: Sequence[Column] = COLUMNS) -> Table:
    """Format the rows, and mark the best learned systems, the floor and what beats it."""
    columns = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    best = {column.key: _best_value(rows, column) for column in columns}
    floor = find_floor(rows)
    lines = []
    for row in rows:
        cells = [_cell(row, column, best[column.key]) for column in columns]
        beats = floor is not None and beats_floor(row, floor)
        lines.append(Line(row["system"], cells, row is floor, row["system"] == ORACLE, beats))
    return Table(columns, lines)


def _best_value(rows: Sequence[Row], column: Column) -> float | None:
    """Best value of the learned systems; None where all are equal or no value is better than another."""
    values = [row[column.key] for row in rows if is_learned(row) and row.get(column.key) is not None]
    if not column.better or not values or (len(values) > 1 and len(set(values)) == 1):
        return None
    return max(values) if column.better > 0 else min(values)


def _cell(row: Row, column: Column, best: float | None) -> Cell:
    value, deviation = row.get(column.key), row.get(f"{column.key}_std")
    if value is None:
        return Cell("–")
    spread = column.show(deviation) if deviation and column.better else ""  # counting has no seed and no spread
    low, high = row.get(f"{column.key}_low"), row.get(f"{column.key}_high")
    interval = "" if low is None or high is None or spread else f"{column.show(low)} … {column.show(high)}"
    return Cell(column.show(value), spread, is_learned(row) and value == best, interval)


def beats_floor(row: Row, floor: Row) -> bool:
    """Decide whether a row's NDCG@10 is above the floor's by more than chance.

    Where the paired difference over users was tested, its 95% interval must be above zero. With several seeds, the
    difference must exceed the standard deviations of both rows together.
    """
    if row is floor or row["system"] == ORACLE or row.get("ndcg@10") is None or floor.get("ndcg@10") is None:
        return False
    tested = row.get(ABOVE_FLOOR)
    spread = row.get("ndcg@10_std", 0.0) + floor.get("ndcg@10_std", 0.0)
    return row["ndcg@10"] - spread > floor["ndcg@10"] and (not isinstance(tested, dict) or tested["low"] > 0)


def target_table(rows: Sequence[Row]) -> Table:
    """Build the table of Recall@10 by target: reachable by counting or not, by popularity of the target, and cold.

    A target is reachable if the transition counts of the training part link it to an item of the history; it is cold
    if the training part does not have it. Each column's meaning is its size.
    """
    share = next((row["reachable"] for row in rows if row.get("reachable") is not None), None)
    sizes = ("", "") if share is None else (f"{share:.1%} of users", f"{1 - share:.1%} of users")
    columns = [
        Column("recall@10_reachable", "reachable", sizes[0], 1, four_digits),
        Column("recall@10_unreachable", "unreachable", sizes[1], 1, four_digits),
    ]
    groups = next((row["by_popularity"] for row in rows if isinstance(row.get("by_popularity"), list)), [])
    for group in groups:
        size = f"{group['items']:,} items, {group['users']:,} users"
        head = "cold" if group["group"] == "unseen" else str(group["group"])
        columns.append(Column(f"group {group['group']}", head, size, 1, four_digits))
    columns.append(Column("recall@10_cold_among_cold", "cold among cold", "only cold items ranked", 1, four_digits))
    flat = [
        row | {f"group {group['group']}": group.get("recall@10") for group in row.get("by_popularity") or ()}
        for row in rows
    ]
    return build_table(flat, columns)


def headline(rows: Sequence[Row]) -> str:
    """Name data set, split, number of users and seeds."""
    first = rows[0]
    seeds = sorted({seed for row in rows for seed in row.get("seeds", [row.get("seed")]) if seed is not None})
    users = f"{first['users']:,} users" if isinstance(first.get("users"), int) else ""
    seed = f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}" if seeds else ""
    spread = f"mean ± standard deviation of {_runs(rows)} runs" if _has_several_runs(rows) else ""
    return ", ".join(part for part in (first.get("dataset"), first.get("split"), users, seed, spread) if part)


def verdict(rows: Sequence[Row]) -> str:
    """Compare the best learned system with the floor, in a sentence."""
    learned = [row for row in rows if is_learned(row) and row.get("ndcg@10") is not None]
    floor = find_floor(rows)
    if not learned:
        return "No learned system was evaluated: the table holds baselines only."
    best = max(learned, key=lambda row: row["ndcg@10"])
    text = f"Best learned system by NDCG@10: {best['system']}, {best['ndcg@10']:.4f}"
    if floor is None or not floor.get("ndcg@10"):
        return text + "."
    change = best["ndcg@10"] / floor["ndcg@10"] - 1
    direction = "above" if change >= 0 else "below"
    return f"{text}, {abs(change):.1%} {direction} the floor ({floor['system']}, {floor['ndcg@10']:.4f})."


def footnotes(rows: Sequence[Row]) -> list[str]:
    """Explain the marks of the table, then repeat the notes of single rows in words."""
    notes = ["Bold: the best of the learned systems (neither the oracle nor a baseline without training)."]
    floor = find_floor(rows)
    if floor is not None:
        mark = "▲ marks rows whose NDCG@10 is above it"
        mark += ", by more than the standard deviation over the seeds" if _has_several_runs(rows) else ""
        if any(ABOVE_FLOOR in row for row in rows):
            mark += "; the 95% interval of the paired difference over users must be above zero as well"
        chosen = floor.get(VALID_NDCG_KEY) is not None
        kind = "the best by validation NDCG@10 of the systems that learn nothing" if chosen else "which learns nothing"
        notes.append(f"Floor: {floor['system']}, {kind}. {mark}.")
    if any(row["system"] == ORACLE for row in rows):
        notes.append("Oracle: knows the simulator's true distribution, the bound for every model.")
    ties = [f"{row['system']} {row[TIES_WON]:.4f}" for row in rows if row.get(TIES_WON) is not None]
    if ties:
        notes.append(f"Recall@10 if the target won every tie of equal scores: {', '.join(ties)}.")
    runs = _runs(rows)
    fewer = [f"{row['system']} {len(row['seeds'])}" for row in rows if "seeds" in row and len(row["seeds"]) < runs]
    if fewer:
        notes.append(f"Not in all {runs} runs: {', '.join(fewer)}.")
    return notes + [f"{row['system']}: {readable_note(row['note'])}" for row in rows if row.get("note")]


def _has_several_runs(rows: Sequence[Row]) -> bool:
    return any("seeds" in row for row in rows)


def _runs(rows: Sequence[Row]) -> int:
    return max(len(row.get("seeds", [0])) for row in rows)
