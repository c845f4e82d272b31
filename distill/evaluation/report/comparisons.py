"""Paired comparisons over users: each system against the floor, and against the student without a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from distill.baselines.names import ORACLE
from distill.evaluation.ranked_lists import RankedLists, read_ranked_lists
from distill.evaluation.report.columns import ABOVE_FLOOR
from distill.evaluation.report.systems import NO_TEACHER, Row, floor_name, is_learned
from distill.runtime.artifacts import Artifact
from distill.runtime.errors import UserError


class Difference(NamedTuple):
    """One comparison as text."""

    system: str
    reference: str
    difference: str
    interval: str
    p: str


def read_all_ranked_lists(evaluations: Sequence[Artifact]) -> list[RankedLists]:
    """Read the ranked lists of each evaluation.

    Raises:
        UserError: the evaluations rank for different users.
    """
    runs = [read_ranked_lists(evaluation.folder / "lists.parquet") for evaluation in evaluations]
    for evaluation, lists in zip(evaluations, runs, strict=True):
        if not runs[0].same_users(lists):
            raise UserError(f"{evaluation.folder} was evaluated on other users than {evaluations[0].folder}.")
    return runs


def paired_differences(reference: str, rows: Sequence[Row], runs: Sequence[RankedLists]) -> dict[str, dict[str, float]]:
    """Compare each system's NDCG@10 with a reference system's, user by user (`metrics.paired`).

    A user's NDCG is the mean over the runs that have both systems. The oracle is not compared; systems that learn
    nothing are compared with the floor only.
    """
    from distill.metrics import hit_ranks, ndcg, paired  # with scipy, which takes long to import

    values: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for run in runs:
        if reference not in run.lists:
            continue
        ndcg_by_system = {name: ndcg(hit_ranks(lists, run.targets), 10) for name, lists in run.lists.items()}
        for name, system_ndcg in ndcg_by_system.items():
            values.setdefault(name, []).append((system_ndcg, ndcg_by_system[reference]))
    to_floor = reference == floor_name(rows)
    compared = [
        row["system"]
        for row in rows
        if row["system"] in values and row["system"] not in (reference, ORACLE) and (is_learned(row) or to_floor)
    ]
    return {name: paired(*np.mean(values[name], axis=0)) for name in compared}


def list_differences(rows: Sequence[Row], to_no_teacher: Mapping[str, Mapping[str, float]]) -> list[Difference]:
    """Format the differences to the floor, which the rows hold, then those to the student without a teacher."""
    floor = floor_name(rows)
    tests = [(row["system"], floor, row[ABOVE_FLOOR]) for row in rows if isinstance(row.get(ABOVE_FLOOR), dict)]
    tests += [(system, NO_TEACHER, test) for system, test in to_no_teacher.items()]
    return [
        Difference(
            system,
            reference,
            f"{test['difference']:+.4f}",
            f"{test['low']:+.4f} … {test['high']:+.4f}",
            f"{test['p']:.2g}",
        )
        for system, reference, test in tests
    ]
