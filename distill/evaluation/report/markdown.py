"""report.md: the tables, the exact commands, time and memory of each artifact."""

from __future__ import annotations

from collections.abc import Mapping

from distill.evaluation.report.provenance import list_costs
from distill.evaluation.report.summary import Summary
from distill.evaluation.report.table import Line, build_table, footnotes, headline, target_table, verdict
from distill.runtime.artifacts import Artifact
from distill.runtime.markdown import markdown_table
from distill.runtime.terminal import printable


def render_markdown(summary: Summary, artifacts: Mapping[str, Artifact], command: str) -> str:
    """Render the report as Markdown.

    Args:
        summary: what it says.
        artifacts: of the run, for commands and costs.
        command: that makes the report.
    """
    rows = summary.rows
    table = build_table(rows)
    notes = [*footnotes(rows), "; ".join(f"{column.head}: {column.meaning}" for column in table.columns) + "."]
    parts = [
        f"# {headline(rows)}\n",
        f"{verdict(rows)}\n",
        markdown_table(
            ["system", *(column.head for column in table.columns)],
            [[line.label, *_cells(line)] for line in table.lines],
        ),
        "".join(f"- {note}\n" for note in notes),
    ]
    targets = target_table(rows)
    if targets:
        heads = [f"{column.head} ({column.meaning})" if column.meaning else column.head for column in targets.columns]
        parts.append("## Recall@10 by target\n")
        parts.append(markdown_table(["system", *heads], [[line.system, *_cells(line)] for line in targets.lines]))
    if summary.differences:
        parts.append("## NDCG@10 user by user\n")
        parts.append(
            "".join(
                f"- {test.system} − {test.reference}: {test.difference} ({test.interval}), p = {test.p}\n"
                for test in summary.differences
            )
        )
    commands = [*(artifact.manifest["command"] for artifact in artifacts.values()), command]
    costs = [(cost.name, cost.time, cost.memory, cost.created) for cost in list_costs(artifacts)]
    parts += ["## Commands\n", "```\n" + "".join(f"{line}\n" for line in commands) + "```\n", "## Time and memory\n"]
    parts.append(markdown_table(["artifact", "time", "peak memory", "made"], costs, text_columns=(0, 3)))
    return printable("\n".join(parts))  # names are of others, and the file is read on terminals


def _cells(line: Line) -> list[str]:
    return [f"**{cell.with_spread}**" if cell.best else cell.with_spread for cell in line.cells]
