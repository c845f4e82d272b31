"""What a report says, before it is rendered."""

from __future__ import annotations

from dataclasses import dataclass

from distill.evaluation.report.columns import ABOVE_FLOOR
from distill.evaluation.report.comparisons import (
    Difference,
    list_differences,
    paired_differences,
    read_all_ranked_lists,
)
from distill.evaluation.report.rows import merge_seeds, read_rows
from distill.evaluation.report.sources import Sources
from distill.evaluation.report.systems import NO_TEACHER, Row, floor_name


@dataclass(frozen=True)
class Summary:
    """Rows of all systems, averaged over the runs, and the paired differences between systems."""

    rows: list[Row]
    differences: list[Difference]


def summarise(sources: Sources) -> Summary:
    """Average the runs and compare the systems over the same users.

    With several runs, the rows' differences to the floor are computed over all runs together.

    Raises:
        UserError: damaged files, or runs that were evaluated on different users.
    """
    rows = merge_seeds([read_rows(evaluation) for evaluation in sources.evaluations])
    runs = read_all_ranked_lists(sources.evaluations)
    if len(runs) > 1:
        to_floor = paired_differences(floor_name(rows), rows, runs)
        for row in rows:
            if row["system"] in to_floor:
                row[ABOVE_FLOOR] = to_floor[row["system"]]
    return Summary(rows, list_differences(rows, paired_differences(NO_TEACHER, rows, runs)))
