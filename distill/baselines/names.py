"""Names of the evaluated systems that learn nothing; the keys of their rows in `metrics.json`."""

from __future__ import annotations

ORACLE = "oracle"  # the demo simulator's true distribution: a bound, not a competitor
POPULARITY = "popularity"
TRANSITIONS = "transitions"
TRANSITIONS_VALID = "transitions+valid"  # counts the validation part as well
GRAPH = "graph"
CONTENT = "content"
COUNTER_CONTENT = "counter+content"

FLOOR_CANDIDATES = (POPULARITY, TRANSITIONS, GRAPH, CONTENT, COUNTER_CONTENT)
"""The floor of a table is the best of these by validation NDCG@10, never by test."""

NOT_LEARNED = (ORACLE, POPULARITY, TRANSITIONS, TRANSITIONS_VALID, GRAPH, CONTENT, COUNTER_CONTENT)
"""Systems without trained parameters."""

TEACHER_MIXTURES = (f"teacher+{TRANSITIONS}", f"teacher+{COUNTER_CONTENT}")
"""The teacher mixed with systems that learn nothing."""

FLOOR_KEY = "floor"
"""Key of every row: the name of the table's floor."""
VALID_NDCG_KEY = "valid_ndcg@10"
"""Key of the floor candidates' rows: the validation NDCG@10 by which the floor is chosen."""
