"""Table 3 of the paper: statistics of the data set, with the published ones beside, as csv, Markdown and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.data.dataset import Dataset
from distill.evaluation.reproduction.config import Config
from distill.evaluation.reproduction.output import Output, Row
from distill.evaluation.reproduction.published import LOHREC, STATISTICS
from distill.runtime.markdown import markdown_table

FORMATS = {
    "users": "{:,.0f}",
    "items": "{:,.0f}",
    "interactions": "{:,.0f}",
    "sparsity": "{:.2%}",
    "mean_length": "{:.2f}",
}
HEADS = ["users", "items", "interactions", "sparsity", "mean length"]


def make_statistics(runs: Sequence[Path], config: Config) -> Output:
    """Gather table3 from the first run; raises as `gather_statistics`."""
    rows = gather_statistics(runs[0], config)
    return Output(render_statistics(config, rows), rows, lambda path: draw_statistics(path, config, rows))


def gather_statistics(run: Path, config: Config) -> list[Row]:
    """Compute the statistics of a run's data set, followed by the published ones where there are any.

    Raises:
        UserError: the data set is missing.
    """
    rows: list[Row] = [{"source": "this run", **Dataset.load(run / "dataset").statistics()}]
    if config.dataset in STATISTICS:
        rows.append({"source": f"{LOHREC}, Table 3", **dict(zip(FORMATS, STATISTICS[config.dataset], strict=True))})
    return rows


def _cells(row: Row) -> list[str]:
    return [row["source"], *(form.format(row[key]) for key, form in FORMATS.items())]


def render_statistics(config: Config, rows: Sequence[Row]) -> str:
    """Render the rows as Markdown."""
    return "\n".join(
        [f"# table3: {config.dataset}\n", markdown_table(["source", *HEADS], [_cells(row) for row in rows])]
    )


def draw_statistics(path: Path, config: Config, rows: Sequence[Row]) -> None:
    """Draw the rows as a table."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.4 * len(rows) + 0.8), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.set_title(f"Statistics: {config.dataset}", loc="left", parse_math=False)  # a name may hold $
    table = axes.table([_cells(row) for row in rows], colLabels=["source", *HEADS], loc="center")
    table.auto_set_column_width(range(len(HEADS) + 1))
    figure.savefig(path, dpi=150, metadata={"Software": None})
