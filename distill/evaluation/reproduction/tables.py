"""A table of the paper: rows averaged over the runs, as csv, Markdown and PNG."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distill.evaluation.reproduction.config import Config
from distill.evaluation.reproduction.output import Output, Row, format_value
from distill.evaluation.reproduction.pipeline import (
    EVALUATIONS,
    LISTS_EVALUATION,
    P5_CID_EVALUATION,
    PAPER_EVALUATIONS,
    PAPER_STUDENTS,
    WITHOUT_DISTILL,
)
from distill.evaluation.reproduction.published import LC_REC, LOHREC, published_figures, source
from distill.runtime import artifacts
from distill.runtime.errors import UserError
from distill.runtime.markdown import markdown_table

METRICS = {
    "table1": (
        "recall@5",
        "recall@10",
        "ndcg@5",
        "ndcg@10",
        "diversity@10",
        "recall@10_reachable",
        "recall@10_unreachable",
    ),
    "table2": ("recall@10", "ndcg@10", "diversity@10"),
}
HEADS = {
    "recall@5": "R@5",
    "recall@10": "R@10",
    "ndcg@5": "N@5",
    "ndcg@10": "N@10",
    "diversity@10": "Div@10",
    "recall@10_reachable": "R@10 reachable",
    "recall@10_unreachable": "R@10 unreachable",
}
ABLATION = {"dwr": "DWR", WITHOUT_DISTILL: "w/o DISTILL", "distill": "w/o RANK", "tiger": "w/o all"}
PAPER_SETTINGS = ", paper's settings"  # ends the name of a student's row


def label(table: str, system: str) -> str:
    """Name a system as the paper's table does."""
    if table != "table2":
        return system
    name = system.removesuffix(PAPER_SETTINGS)
    return ABLATION[name] + system.removeprefix(name)


def make_table(runs: Sequence[Path], config: Config) -> Output:
    """Gather table1 or table2 from the runs of all seeds; raises as `read_run` and `gather`."""
    rows = gather([read_run(folder, config) for folder in runs], config)
    if config.table == "table1":
        lists = gather([read_baselines(runs[0] / LISTS_EVALUATION)], replace(config, seeds=config.seeds[:1]))
        rows = before_students(rows, lists)
    return Output(render_markdown(config, rows), rows, lambda path: draw(path, config, rows))


def read_run(folder: Path, config: Config) -> list[Row]:
    """Read the rows of a run's evaluations: the students' after the baselines', those of the paper's settings last.

    Raises:
        UserError: an evaluation is missing.
    """
    rows = [row for name in EVALUATIONS[config.table] for row in read_rows(folder / name)]
    if config.table == "table1":
        rows = before_students(rows, read_baselines(folder / P5_CID_EVALUATION))
    if config.settings == "paper":
        systems = PAPER_STUDENTS[config.table]
        paper = [row for row in read_rows(folder / PAPER_EVALUATIONS[config.table]) if row["system"] in systems]
        rows += [row | {"system": row["system"] + PAPER_SETTINGS} for row in paper]
    return rows


def read_baselines(evaluation: Path) -> list[Row]:
    """Read the rows of an evaluation beside the run's, without its popularity; none if it was not made."""
    if not evaluation.is_dir():
        return []
    return [row for row in read_rows(evaluation) if row["system"] != "popularity"]


def before_students(rows: list[Row], baselines: list[Row]) -> list[Row]:
    """Put baselines in front of the first student."""
    place = next((place for place, row in enumerate(rows) if row["system"] in PAPER_STUDENTS["table1"]), len(rows))
    return [*rows[:place], *baselines, *rows[place:]]


def read_rows(evaluation: Path) -> list[Row]:
    """Read the rows of an evaluation.

    Raises:
        UserError: it is missing.
    """
    folder = artifacts.read(evaluation, "evaluation").folder
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def gather(runs: Sequence[Sequence[Row]], config: Config) -> list[Row]:
    """Average each system over the runs, and put the published figures beside.

    Args:
        runs: rows of each seed's evaluations.
        config: table, data set and seeds.

    Returns:
        One row per system: KEY, KEY_std where there are several runs, and where figures were published, paper_KEY and
        `source`. Of table1 all systems of the first run; of table2 the four of the paper, twice with the paper's
        settings.

    Raises:
        UserError: a system that a run lacks, or that was evaluated on different users or splits.
    """
    by_name = [{row["system"]: row for row in rows} for rows in runs]
    ablation = [name + suffix for suffix in _suffixes(config) for name in ABLATION]
    rows = []
    for name in ablation if config.table == "table2" else by_name[0]:
        for seed, systems in zip(config.seeds, by_name, strict=True):
            if name not in systems:
                raise UserError(f"The run of seed {seed} has no {name}.")
        row = _average(name, [systems[name] for systems in by_name], METRICS[config.table])
        system = name.removesuffix(PAPER_SETTINGS)
        published = published_figures(config.table, config.dataset, system)
        if published:
            row |= {f"paper_{key}": value for key, value in published.items()} | {"source": source(system)}
        rows.append(row)
    return rows


def _suffixes(config: Config) -> tuple[str, ...]:
    return ("", PAPER_SETTINGS) if config.settings == "paper" else ("",)


def _average(name: str, rows: Sequence[Row], metrics: Sequence[str]) -> Row:
    facts = {(row["users"], row["split"], row["dataset"] if len(rows) == 1 else "") for row in rows}
    if len(facts) > 1:
        raise UserError(f"{name} was evaluated on different users in the runs: {sorted(facts)}.")
    first = rows[0]
    average: Row = {"system": name, "seeds": len(rows), "users": first["users"], "split": first["split"]}
    for key in metrics:
        values = [row[key] for row in rows if row.get(key) is not None]
        average[key] = statistics.fmean(values) if values else None
        if len(values) > 1:
            average[f"{key}_std"] = statistics.stdev(values)
    if first.get("reachable") is not None:
        average["reachable"] = first["reachable"]
    return average


def render_markdown(config: Config, rows: Sequence[Row]) -> str:
    """Render the rows as Markdown, with the published figures and their source where there are any."""
    metrics = METRICS[config.table]
    published = [key for key in metrics if any(f"paper_{key}" in row for row in rows)]
    heads = ["system", *(HEADS[key] for key in metrics), *(f"published {HEADS[key]}" for key in published)]
    lines = []
    for row in rows:
        cells = [format_value(row.get(key), row.get(f"{key}_std")) for key in metrics]
        cells += [format_value(row.get(f"paper_{key}")) for key in published]
        lines.append([label(config.table, row["system"]), *cells] + ([row.get("source", "")] if published else []))
    text_columns = (0, len(heads)) if published else (0,)
    heads += ["source of the published figures"] if published else []
    parts = [f"# {_title(config, rows)}\n", markdown_table(heads, lines, text_columns)]
    share = next((row["reachable"] for row in rows if "reachable" in row), None)
    if config.table == "table1" and share is not None:
        parts.append(
            f"Reachable: the {share:.1%} of users whose target the transition counts of the training part link to "
            "their history.\n"
        )
    if published and config.table == "table1":
        parts.append(
            "The published teacher is LC-Rec on LLaMA-7B, as its authors report it; LOHRec's Table 1 has no such row. "
            "The teacher of this run is the one of its config.\n"
        )
    return "\n".join(parts)


def _title(config: Config, rows: Sequence[Row]) -> str:
    seeds = f"seed {config.seeds[0]}"
    if len(config.seeds) > 1:
        seeds = f"mean ± standard deviation of seeds {', '.join(map(str, config.seeds))}"
    return f"{config.table}: {config.dataset}, {rows[0]['split']}, {rows[0]['users']:,} users, {seeds}"


def draw(path: Path, config: Config, rows: Sequence[Row]) -> None:
    """Draw Recall@10 and NDCG@10 of all systems as bars, and published figures as dots, one colour per publication."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.32 * len(rows) + 1.6), layout="constrained")
    positions = range(len(rows))
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ("recall@10", "ndcg@10"), strict=True):
        values, spread = [row[key] or 0 for row in rows], [row.get(f"{key}_std", 0) for row in rows]
        axes.barh(positions, values, xerr=spread if any(spread) else None, color="#8fb0d8", label="these runs")
        for publication, colour in ((LOHREC, "#b8337f"), (LC_REC, "#d97a00")):
            dots = [(row[f"paper_{key}"], at) for at, row in enumerate(rows) if row.get("source") == publication]
            if dots:
                axes.plot(*zip(*dots, strict=True), "o", color=colour, label=publication)
        axes.set_title(HEADS[key], loc="left")
        axes.grid(axis="x", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_yticks(list(positions), [label(config.table, row["system"]) for row in rows])
    figure.axes[0].invert_yaxis()
    handles = figure.axes[0].get_legend_handles_labels()
    if len(handles[0]) > 1:
        figure.legend(*handles, loc="outside lower center", ncols=len(handles[0]), frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})
