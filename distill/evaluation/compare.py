"""Compare two systems user by user, from the lists that an evaluation wrote."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distill.evaluation.ranked_lists import RankedLists, read_ranked_lists
from distill.metrics import hit_ranks, ndcg, paired, recall
from distill.runtime import artifacts
from distill.runtime.checksums import MANIFEST
from distill.runtime.config import suggest
from distill.runtime.errors import UserError
from distill.runtime.terminal import cell

CUTOFFS = (1, 5, 10, 20)


class Comparison(NamedTuple):
    """The result: how many users, and for each metric the means `a` and `b` and what `metrics.paired` gives."""

    users: int
    metrics: dict[str, dict[str, float]]


def compare_systems(folder_a: Path, system_a: str, folder_b: Path, system_b: str) -> Comparison:
    """Compare a system of one evaluation with a system of the same or another evaluation.

    Raises:
        UserError: no such evaluation or system, or the systems were evaluated on different users.
    """
    evaluation_a, lists_a = lists_of(folder_a, system_a)
    evaluation_b, lists_b = lists_of(folder_b, system_b)
    if not evaluation_a.same_users(evaluation_b):
        raise UserError(
            f"{system_a} and {system_b} were evaluated on different users or targets ({len(evaluation_a.users)} and "
            f"{len(evaluation_b.users)} of them). Evaluate both with the same --dataset, --split and --users."
        )
    return Comparison(len(evaluation_a.users), compare_lists(lists_a, lists_b, evaluation_a.targets))


def compare_lists(lists_a: np.ndarray, lists_b: np.ndarray, targets: np.ndarray) -> dict[str, dict[str, float]]:
    """Recall and NDCG of two systems and their paired difference, at the cutoffs that both lists fill.

    Args:
        lists_a, lists_b: ranked item numbers, -1 for none [users, any].
        targets: item numbers [users].
    """
    longest = min(lists_a.shape[1], lists_b.shape[1])
    ranks_a, ranks_b = hit_ranks(lists_a, targets), hit_ranks(lists_b, targets)
    figures = {}
    for k in [k for k in CUTOFFS if k <= longest]:
        for name, metric in (("recall", recall), ("ndcg", ndcg)):
            if k == 1 and name == "ndcg":
                continue  # the same as recall@1
            a, b = metric(ranks_a, k), metric(ranks_b, k)
            figures[f"{name}@{k}"] = {"a": float(a.mean()), "b": float(b.mean())} | paired(a, b)
    return figures


def lists_of(folder: Path, system: str) -> tuple[RankedLists, np.ndarray]:
    """Read the lists of an evaluation, and those of one of its systems.

    Raises:
        UserError: no such evaluation or system.
    """
    artifact = artifacts.read(folder, "evaluation")
    artifacts.verify(artifact)
    evaluation = read_ranked_lists(artifact.folder / "lists.parquet")
    if system not in evaluation.lists:
        raise UserError(f"Unknown system {system!r} in {folder}. {suggest(system, list(evaluation.lists))}")
    return evaluation, evaluation.lists[system]


def check_json_file(path: Path) -> None:
    """Refuse a place where a file of figures cannot be written, or would damage an artifact.

    Raises:
        UserError: a folder, in no folder, or inside an artifact.
    """
    if path.is_dir():
        raise UserError(f"--json {path} is a folder; name a file.")
    if not path.resolve().parent.is_dir():
        raise UserError(f"--json {path}: there is no folder {path.parent}; make it, or name another file.")
    for folder in path.resolve().parents:
        if (folder / MANIFEST).is_file():
            raise UserError(
                f"--json {path} lies inside the artifact {folder}, which it would damage; name another file."
            )


def write_figures(path: Path, system_a: str, system_b: str, comparison: Comparison) -> None:
    """Write a comparison as JSON, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        artifacts.write_json(path, {"a": system_a, "b": system_b, **comparison._asdict()})
    except OSError as error:
        with contextlib.suppress(OSError):
            path.with_name(path.name + ".tmp").unlink(missing_ok=True)
        raise UserError(f"--json {path} cannot be written: {error.strerror}.") from None


def print_comparison(comparison: Comparison, system_a: str, system_b: str) -> None:
    """Print the figures as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=cell(f"{system_a} − {system_b}, {comparison.users:,} users"), box=box.SIMPLE_HEAD)
    for head in ("", system_a, system_b, "difference", "95% interval", "p (paired t)"):
        table.add_column(cell(head), justify="right" if head else "left")
    for name, values in comparison.metrics.items():
        interval = f"{values['low']:+.4f} … {values['high']:+.4f}"
        means = f"{values['a']:.4f}", f"{values['b']:.4f}", f"{values['difference']:+.4f}"
        table.add_row(name, *means, interval, f"{values['p']:.3g}")
    Console().print(table)
