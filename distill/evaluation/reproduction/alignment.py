"""Figure 4, right: how well a student learns the teacher's lists from four kinds of labels (paper 4.6).

The teacher's first 20 items of each test user are the ground truth. *Ref* learns the real next item by equation (8),
*Top* the teacher's first item, *Random* an item of the teacher's list, *Rank* the order of the teacher's list by
equation (14). Coverage is the share of the teacher's list that the student's list of the same length holds,
Coordination the length of the longest common subsequence over the length of the teacher's list.

Where the paper is silent:

- Coverage and Coordination follow ROUGE-1 and ROUGE-L, which exist as recall, precision and F1. For lists of the same
  length all three are equal.
- *Rank* may be (14) alone or its sum with (8). Both are rows here: `rank` and `rank+ref`, Table 2's "w/o DISTILL".
- Whether the teacher's list of a *training* example holds its real next item where the beams missed it. Labels store it
  first, but *Random* draws from the teacher's own list (`student.ranked_lists.item_of_list`).
- The values: the figure prints bars without numbers. Its text says that Rank is significantly ahead of the others.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from distill.evaluation.ranked_lists import RankedLists, read_ranked_lists
from distill.evaluation.reproduction.config import Config
from distill.evaluation.reproduction.output import Row, format_value
from distill.evaluation.reproduction.pipeline import ALIGNMENT_EVALUATIONS, WITHOUT_DISTILL
from distill.metrics import coordination, coverage, hit_ranks, recall
from distill.runtime import artifacts
from distill.runtime.errors import UserError
from distill.runtime.markdown import markdown_table

LENGTH = 20  # of the lists that are compared (paper 4.6)
# what a student learned -> (the evaluation that ranked it, its name there)
METHODS = {
    "ref": ("evaluation", "tiger"),
    "top": ("evaluation-alignment", "top"),
    "random": ("evaluation-alignment", "random"),
    "rank": ("evaluation-alignment", "rank"),
    "rank+ref": ("evaluation-alignment-ablation", WITHOUT_DISTILL),
    "distill": ("evaluation", "distill"),
    "dwr": ("evaluation", "dwr"),
}
IN_THE_PAPER = ("ref", "top", "random", "rank")
METRICS = {"coverage": "Coverage", "coordination": "Coordination", "recall@10": "R@10"}


def gather_alignment(runs: Sequence[Path], config: Config) -> list[Row]:
    """Compare the lists of each method with the teacher's, averaged over users and then over runs.

    Returns:
        One row a method: the means, with several runs KEY_std, and how many items of the lists were compared.

    Raises:
        UserError: an evaluation is missing, lacks a system, or ranked for other users.
    """
    measured = [measure_run(folder) for folder in runs]
    rows = []
    for method in METHODS:
        points = [methods[method] for methods in measured]
        row: Row = {"method": method, "in_the_paper": method in IN_THE_PAPER, "seeds": len(config.seeds)}
        row |= {"users": points[0]["users"], "length": points[0]["length"]}
        for key in METRICS:
            values = [point[key] for point in points]
            row[key] = statistics.fmean(values)
            if len(values) > 1:
                row[f"{key}_std"] = statistics.stdev(values)
        rows.append(row)
    return rows


def measure_run(folder: Path) -> dict[str, Row]:
    """Measure all methods of one run; raises as `gather_alignment`."""
    evaluations = {name: _read(folder / name) for name in ("evaluation", *ALIGNMENT_EVALUATIONS)}
    teacher = _lists(folder, evaluations, "evaluation", "teacher")
    rows = {}
    for method, (name, system) in METHODS.items():
        if not evaluations[name].same_users(evaluations["evaluation"]):
            raise UserError(f"{folder / name} and {folder / 'evaluation'} ranked for different users.")
        lists, targets = _lists(folder, evaluations, name, system), evaluations[name].targets
        length = min(LENGTH, teacher.shape[1], lists.shape[1])
        students, teachers = lists[:, :length], teacher[:, :length]
        rows[method] = {
            "users": len(targets),
            "length": length,
            "coverage": float(coverage(students, teachers).mean()),
            "coordination": float(coordination(students, teachers).mean()),
            "recall@10": float(recall(hit_ranks(lists, targets), min(10, length)).mean()),
        }
    return rows


def _read(evaluation: Path) -> RankedLists:
    return read_ranked_lists(artifacts.read(evaluation, "evaluation").folder / "lists.parquet")


def _lists(folder: Path, evaluations: dict[str, RankedLists], name: str, system: str):
    if system not in evaluations[name].lists:
        raise UserError(f"{folder / name} has no lists of {system}.")
    return evaluations[name].lists[system]


def render_alignment(config: Config, rows: Sequence[Row]) -> str:
    """Render the rows as Markdown."""
    heads = ["learned", *METRICS.values()]
    cells = [[row["method"], *(format_value(row[key], row.get(f"{key}_std")) for key in METRICS)] for row in rows]
    note = (
        f"Coverage and Coordination with the teacher's first {rows[0]['length']} items, {rows[0]['users']:,} test "
        f"users, seeds {config.seeds}. The paper's figure has {', '.join(IN_THE_PAPER)} as bars without values; its "
        "text (4.6) says that rank is significantly ahead. rank learns equation (14) alone, rank+ref its sum with "
        "(8).\n"
    )
    return "\n".join([markdown_table(heads, cells), note])


def draw_alignment(axes, rows: Sequence[Row]) -> None:
    """Draw Coverage and Coordination as pairs of bars."""
    places, width = range(len(rows)), 0.38
    for shift, key, colour in ((-width / 2, "coverage", "#8fb0d8"), (width / 2, "coordination", "#d97a00")):
        spread = [row.get(f"{key}_std", 0) for row in rows]
        values = [row[key] for row in rows]
        at = [place + shift for place in places]
        axes.bar(at, values, width, yerr=spread if any(spread) else None, color=colour, label=METRICS[key])
    axes.set_xticks(list(places), [row["method"] for row in rows], rotation=30, ha="right")
    axes.axvline(len(IN_THE_PAPER) - 0.5, color="0.7", linewidth=0.8, linestyle=":")
    axes.set_title(f"Agreement with the teacher's first {rows[0]['length']}", loc="left")
    axes.grid(axis="y", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
