"""The metrics that a table shows: key in metrics.json, head, meaning, format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One metric of a table."""

    key: str
    """Key in metrics.json."""
    head: str
    """Head of the column."""
    meaning: str
    """Explanation below the table."""
    better: int
    """1: higher is better; -1: lower is better; 0: neither."""
    show: Callable[[float], str]
    """Formats a value."""


def four_digits(value: float) -> str:
    """Format with four digits after the point."""
    return f"{value:.4f}"


def three_digits(value: float) -> str:
    """Format with three digits after the point."""
    return f"{value:.3f}"


def percent(value: float) -> str:
    """Format a share as a percentage."""
    return f"{value:.2%}"


def whole_number(value: float) -> str:
    """Format without digits after the point."""
    return f"{value:,.0f}"


def parameter_count(value: float) -> str:
    """Format in millions, small counts in full."""
    return f"{value / 1e6:.2f} M" if value >= 1e4 else f"{value:,.0f}"


COLUMNS = (
    Column("recall@5", "R@5", "share of users whose next item is among the first 5", 1, four_digits),
    Column("recall@10", "R@10", "the same among the first 10", 1, four_digits),
    Column("ndcg@5", "N@5", "NDCG: a hit counts more the higher it ranks", 1, four_digits),
    Column("ndcg@10", "N@10", "the same for the first 10", 1, four_digits),
    Column("diversity@10", "Div@10", "how different the 10 items of a list are", 1, three_digits),
    Column("invalid@10", "Invalid", "share of IDs that name no item when decoding without the trie", -1, percent),
    Column("beam_missed@10", "Missed", "share of the best 10 by exact scores that beam search misses", -1, percent),
    Column("kl_to_truth", "KL", "divergence from the known true distribution of the next item, nats", -1, three_digits),
    Column("parameters", "Params", "parameters of the model", 0, parameter_count),
    Column("users_per_s", "Users/s", "users ranked per second", 0, whole_number),
)
DETAILS = (
    Column("recall@1", "R@1", "share of users whose next item is the first", 1, four_digits),
    Column("recall@20", "R@20", "share of users whose next item is among the first 20", 1, four_digits),
    Column("ndcg@20", "N@20", "NDCG of the first 20", 1, four_digits),
    Column("mrr@20", "MRR", "mean of 1 / rank within the first 20", 1, four_digits),
    Column("catalogue@10", "Catalogue", "share of the catalogue that is recommended to anybody", 1, percent),
    Column("gini@10", "Gini", "how unevenly recommendations fall on items, 0 to 1", -1, three_digits),
    Column("novelty@10", "Novelty", "how rare the recommended items are in the training part, bits", 1, three_digits),
    Column("teacher_coverage", "Coverage", "share of the teacher's list that the list holds", 1, three_digits),
    Column("teacher_coordination", "Coordination", "the same in the teacher's order", 1, three_digits),
)
TIES_WON = "recall@10_ties_won"
ABOVE_FLOOR = "ndcg@10_above_floor"  # paired difference to the floor: difference, low, high, p
