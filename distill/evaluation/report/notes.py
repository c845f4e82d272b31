"""Settings of the baselines in words, for the notes below a table."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

HOPS = ("one hop", "two hops", "three hops", "four hops")
STARTS = ("the last item", "the item before it", "the third-last item")
GRAPH = re.compile(r"budgets (\(\(.*\),?\)), alpha ([\d.]+), both (True|False)")
TRANSITIONS = re.compile(r"window (\d+), decay ([\d.]+), recency ([\d.]+), last (\d+)")


def readable_note(note: str) -> str:
    """Replace lists of settings, as evaluations write them (`window 5, decay 0.7, …`), by words."""
    note = GRAPH.sub(
        lambda match: describe_graph_walk(ast.literal_eval(match[1]), float(match[2]), match[3] == "True"), note
    )
    return TRANSITIONS.sub(
        lambda match: describe_transitions(int(match[1]), float(match[2]), float(match[3]), int(match[4])), note
    )


def describe_graph_walk(budgets: Sequence[Sequence[int]], alpha: float, both: bool) -> str:
    """Describe the settings of the graph walk, e.g. "10 items one hop away, weight 2.0 on transitions, forward only".

    Args:
        budgets: for the last item, the one before it, …: number of items taken at each hop.
        alpha: weight of the transition counts beside the similarity.
        both: whether transitions are also walked backwards.
    """
    walks = []
    for start, counts in zip(STARTS, budgets, strict=False):
        hops = [f"{count} item{'' if count == 1 else 's'} {hop} away" for count, hop in zip(counts, HOPS, strict=False)]
        walks.append(", ".join(hops) + (f" from {start}" if len(budgets) > 1 else ""))
    reach = "; ".join(walks)
    return f"{reach}, weight {alpha} on transitions, {'forward and backward' if both else 'forward only'}"


def describe_transitions(window: int, decay: float, recency: float, last: int) -> str:
    """Describe the settings of the transition counts.

    Args:
        window: largest distance of a counted pair.
        decay: factor of a pair's weight for each further step.
        recency: factor of an item's weight for each step back in the history.
        last: items of the history that are used.
    """
    pairs = "adjacent pairs" if window == 1 else f"pairs up to {window} steps apart"
    pairs += "" if window == 1 else ", all with equal weight" if decay == 1 else f", × {decay} for each further step"
    items = "the last item" if last == 1 else f"the last {last} items"
    return f"{pairs}; reads {items}, × {recency} for each step back"
