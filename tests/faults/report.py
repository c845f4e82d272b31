"""Print the results of soaks as the table of docs/guarantees.md: python -m tests.faults.report soak.json [...]"""

import json
import sys
from collections import Counter
from pathlib import Path

from .results import Results

GOOD = ("equal", "refused", "unread", "repaired", "fitted")


def table(stages: list[dict]) -> str:
    """Write a row for each stage, and one for all: trials of each kind, and what went wrong."""
    heads = ["stage", "changes", *Results.COLUMNS[2:-1], "faults"]
    rows, total = [], Counter()
    for stage in stages:
        counts = {kind: sum(stage["trials"].get(kind, {}).values()) for kind in Results.KINDS}
        faults = sum(n for trials in stage["trials"].values() for outcome, n in trials.items() if outcome not in GOOD)
        total.update(counts | {"changes": stage["changes"], "faults": faults})
        rows.append([stage["stage"], stage["changes"], *counts.values(), faults])
    rows.append(["all", total["changes"], *(total[kind] for kind in Results.KINDS), total["faults"]])
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def read(paths: list[str]) -> list[dict]:
    """Read soaks, and join those of the same stage: other checks of it."""
    joined: dict[str, dict] = {}
    for path in paths:
        for stage in json.loads(Path(path).read_text())["stages"]:
            known = joined.setdefault(stage["stage"], {"stage": stage["stage"], "changes": 0, "trials": {}})
            known["changes"] = max(known["changes"], stage["changes"])
            known["trials"] |= stage["trials"]
    return list(joined.values())


if __name__ == "__main__":
    print(table(read(sys.argv[1:])))
