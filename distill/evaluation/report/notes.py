"""Notes below a table: evaluations of earlier versions wrote settings as Python values, which are put into words."""

from __future__ import annotations

import ast
import re

from distill.baselines.counting import TransitionSettings
from distill.baselines.graph_walk import GraphSettings

GRAPH = re.compile(r"budgets (\(\(.*\),?\)), alpha ([\d.]+), both (True|False)")
TRANSITIONS = re.compile(r"window (\d+), decay ([\d.]+), recency ([\d.]+), last (\d+)")


def readable_note(note: str) -> str:
    """Replace lists of settings (`window 5, decay 0.7, …`) by words; other notes are returned unchanged."""
    return TRANSITIONS.sub(_transitions, GRAPH.sub(_graph, note))


def _graph(match: re.Match) -> str:
    return GraphSettings(ast.literal_eval(match[1]), float(match[2]), match[3] == "True").in_words()


def _transitions(match: re.Match) -> str:
    return TransitionSettings(int(match[1]), float(match[2]), float(match[3]), int(match[4])).in_words()
