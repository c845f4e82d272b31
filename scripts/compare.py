"""Is one system better than another? Paired, over the same users, from the lists that `evaluate.py` kept.

python scripts/compare.py --evaluation runs/demo/evaluation --a dwr --b transitions
python scripts/compare.py --evaluation runs/demo/evaluation --a dwr --other runs/demo-seed1/evaluation --b dwr
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.evaluation.ranked_lists import RankedLists, read_ranked_lists
from distill.metrics import hit_ranks, ndcg, paired, recall
from distill.runtime import artifacts
from distill.runtime.artifacts import write_json
from distill.runtime.config import run, suggest
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class Config:
    """Compare two systems: python scripts/compare.py --a NAME --b NAME [--field value ...]."""

    evaluation: Path = Path("runs/demo/evaluation")
    """Evaluation artifact with the lists of a."""
    other: Path | None = None
    """Evaluation artifact with the lists of b (default: the same)."""
    a: str = "dwr"
    """The one system."""
    b: str = "transitions"
    """The other."""
    json: Path | None = None
    """Also write the figures to this file."""


def main(config: Config) -> None:
    """Read both lists, check that they answer the same questions, test, print."""
    ours, a = answers_of(config.evaluation, config.a)
    theirs, b = answers_of(config.other or config.evaluation, config.b)
    if not ours.same_users(theirs):
        raise UserError(
            f"{config.a} and {config.b} were evaluated on different users or targets ({len(ours.users)} and "
            f"{len(theirs.users)} of them); only systems that answered the same users can be compared. Evaluate both "
            "with the same --dataset, --split and --users."
        )
    longest = min(a.shape[1], b.shape[1])
    ranks = [hit_ranks(lists, ours.targets) for lists in (a, b)]
    figures = {}
    for k in [k for k in (1, 5, 10, 20) if k <= longest]:
        for name, metric in (("recall", recall), ("ndcg", ndcg)):
            if k > 1 or name == "recall":  # at 1 they are the same
                values = [metric(one, k) for one in ranks]
                means = dict(zip(("a", "b"), (float(one.mean()) for one in values), strict=True))
                figures[f"{name}@{k}"] = means | paired(*values)
    if config.json:
        write_json(config.json, {"a": config.a, "b": config.b, "users": len(ours.users), "metrics": figures})
    print_table(config, figures, len(ours.users))


def answers_of(folder: Path, system: str) -> tuple[RankedLists, np.ndarray]:
    """An evaluation's answers, and one system's lists among them.

    Raises:
        UserError: no such evaluation or system.
    """
    answers = read_ranked_lists(artifacts.read(folder, "evaluation").folder / "lists.parquet")
    if system not in answers.lists:
        raise UserError(f"Unknown system {system!r} in {folder}. {suggest(system, list(answers.lists))}")
    return answers, answers.lists[system]


def print_table(config: Config, figures: dict[str, dict[str, float]], users: int) -> None:
    """For people."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{config.a} − {config.b}, {users:,} users", box=box.SIMPLE_HEAD)
    for head in ("", config.a, config.b, "difference", "95% interval", "p (paired t)"):
        table.add_column(head, justify="right" if head else "left")
    for name, one in figures.items():
        interval = f"{one['low']:+.4f} … {one['high']:+.4f}"
        row = (name, f"{one['a']:.4f}", f"{one['b']:.4f}", f"{one['difference']:+.4f}", interval, f"{one['p']:.3g}")
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    run(main, Config)
