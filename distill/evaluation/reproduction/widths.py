"""Figures 1 and 3 of the paper: accuracy, diversity and invalid IDs over the beam width, as csv, Markdown and PNG.

The paper prints these figures as curves without values. Its text (1, 4.4) says that TIGER's Diversity@10 falls as the
beams get wider, and that of three LOHRec variants falls more slowly. The published values beside are those of its
Table 2 (validation split, beam width 20).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.evaluation.reproduction.config import Config
from distill.evaluation.reproduction.output import Output, Row, format_value
from distill.evaluation.reproduction.pipeline import (
    TIGER_SCOPE_ALL,
    WIDTH_STUDENTS,
    WIDTHS,
    WIDTHS_SCOPE_ALL,
    has_whole_vocabulary,
)
from distill.evaluation.reproduction.published import LOHREC, published_figures
from distill.evaluation.reproduction.tables import read_rows
from distill.runtime.errors import UserError
from distill.runtime.markdown import markdown_table

METRICS = {
    "figure1": {
        "recall@10": "R@10",
        "ndcg@10": "N@10",
        "diversity@10": "Div@10",
        "invalid": "invalid, level",
        "invalid_whole": "invalid, vocabulary",
    },
    "figure3": {"diversity@10": "Div@10"},
}
PAPER_WIDTH = 20  # of the paper's Table 2
SHORT_LISTS = (
    "Where bought items are excluded, beams of 10 can hold fewer than ten items: bought ones fall out at the last "
    "codeword. Missing places add nothing to Div@10, which lowers it at that width.\n"
)
TITLES = {
    "invalid": "invalid IDs, among the\nlevel's codewords",
    "invalid_whole": "invalid IDs, among the\nwhole vocabulary",
}
INVALID = (
    "Invalid: share of all beams that name no item, without the trie. *Level*: each step ranks all codewords of its "
    "level. *Vocabulary*: it ranks all tokens that the model can write, as the paper's decoding does: the codewords of "
    "all levels, and of the teacher also words and the end token. A student whose softmax is over its level's "
    "codewords cannot be asked that (–), one whose softmax is over the trie's children neither; tiger-scope-all is "
    "TIGER with a softmax over the codewords of all levels.\n"
)


def systems_of(config: Config) -> dict[str, str]:
    """Name the systems of a figure, and the evaluation that each is read from."""
    if config.table == "figure3":
        return dict.fromkeys(WIDTH_STUDENTS, WIDTHS)
    extra = {} if has_whole_vocabulary(config) else {TIGER_SCOPE_ALL: WIDTHS_SCOPE_ALL}
    return {"tiger": WIDTHS, **extra, "teacher": WIDTHS}


def make_widths(runs: Sequence[Path], config: Config) -> Output:
    """Gather figure1 or figure3 from the runs of all seeds; raises as `gather_widths`."""
    rows = gather_widths(runs, config)
    return Output(render_widths(config, rows), rows, lambda path: draw_widths(path, config, rows))


def gather_widths(runs: Sequence[Path], config: Config) -> list[Row]:
    """Average the measures of each system and beam width over the runs.

    Returns:
        One row per system and width: the metrics, with several runs KEY_std, and `paper_diversity@10` where published.

    Raises:
        UserError: an evaluation or a system of it is missing.
    """
    rows = []
    for system, evaluation in systems_of(config).items():
        measured = [_read_widths(folder / evaluation, system) for folder in runs]
        for points in zip(*(widths for widths, _ in measured), strict=True):
            row: Row = {"system": system, "width": points[0]["width"], "users": measured[0][1]}
            for key in METRICS[config.table]:
                values = [point[key] for point in points if point.get(key) is not None]
                row[key] = statistics.fmean(values) if values else None
                if len(values) > 1:
                    row[f"{key}_std"] = statistics.stdev(values)
            published = published_figures("table2", config.dataset, system)
            if published and row["width"] == PAPER_WIDTH:
                row |= {"paper_diversity@10": published["diversity@10"], "source": f"{LOHREC}, Table 2, validation"}
            rows.append(row)
    return rows


def _read_widths(evaluation: Path, system: str) -> tuple[list[Row], int]:
    """Read a system's measures at each beam width, and the number of users; raises as `gather_widths`."""
    row = next((row for row in read_rows(evaluation) if row["system"] == system), {})
    if "widths" not in row:
        raise UserError(f"{evaluation} has no {system} at several beam widths.")
    return row["widths"], row["users"]


def render_widths(config: Config, rows: Sequence[Row]) -> str:
    """Render the rows as Markdown."""
    metrics = METRICS[config.table]
    has_published = any("source" in row for row in rows)
    heads = ["system", "beam width", *metrics.values(), *["published Div@10"] * has_published]
    lines = []
    for row in rows:
        cells = [format_value(row[key], row.get(f"{key}_std")) for key in metrics]
        published = [format_value(row.get("paper_diversity@10"))] * has_published
        lines.append([row["system"], str(row["width"]), *cells, *published])
    title = f"# {config.table}: {config.dataset}, test, {rows[0]['users']:,} users, seeds {config.seeds}\n"
    notes = [INVALID] if "invalid" in metrics else []
    notes.append(SHORT_LISTS)
    if has_published:
        notes.append(f"Published: {LOHREC}, Table 2 (validation split, beam width {PAPER_WIDTH}).\n")
    return "\n".join([title, markdown_table(heads, lines), *notes])


def draw_widths(path: Path, config: Config, rows: Sequence[Row]) -> None:
    """Draw each metric over the beam width, one line per system, with published values as dots."""
    from matplotlib.figure import Figure

    metrics = METRICS[config.table]
    figure = Figure(figsize=(2.5 * len(metrics) + 2.4, 3.2), layout="constrained")
    lines: dict[str, Any] = {}  # by label: a panel may lack a system
    for axes, (key, head) in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics.items(), strict=True):
        for number, system in enumerate(systems_of(config)):
            points = [row for row in rows if row["system"] == system and row[key] is not None]
            if points:
                xy = [row["width"] for row in points], [row[key] for row in points]
                lines[system] = axes.plot(*xy, "o-", markersize=4, color=f"C{number}", label=system)[0]
            dots = [(row["width"], row[f"paper_{key}"]) for row in points if f"paper_{key}" in row]
            if dots:
                label = f"{system}, published"
                lines[label] = axes.plot(*zip(*dots, strict=True), "x", color=f"C{number}", label=label)[0]
        axes.set_title(TITLES.get(key, head), loc="left", fontsize=10)
        if key in TITLES:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("beam width")
        axes.grid(linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(lines.values(), lines, loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
