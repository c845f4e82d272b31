"""report.html: one page with everything inside, no other files and no scripts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from distill.evaluation.report.columns import DETAILS
from distill.evaluation.report.curves import (
    beam_width_charts,
    loss_charts,
    quality_chart,
    read_training_curves,
)
from distill.evaluation.report.examples import Example
from distill.evaluation.report.provenance import list_costs, list_origins
from distill.evaluation.report.quality import read_quality
from distill.evaluation.report.summary import Summary
from distill.evaluation.report.table import build_table, footnotes, headline, target_table, verdict
from distill.runtime.artifacts import Artifact

TEMPLATE = Path(__file__).with_name("page.html.jinja")


def template_hash() -> str:
    """Hash the template: a report is made again where it changed."""
    return hashlib.sha256(TEMPLATE.read_bytes()).hexdigest()[:16]


def render_page(summary: Summary, artifacts: Mapping[str, Artifact], examples: Sequence[Example]) -> str:
    """Render the report as a page.

    Args:
        summary: what it says.
        artifacts: of the run, for curves, quality of IDs and labels, costs and origins.
        examples: users whose recommendations are shown.
    """
    import jinja2  # here, because `--help` should not wait for it

    rows = summary.rows
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    curves = read_training_curves(artifacts)
    table = build_table(rows)
    return environment.get_template(TEMPLATE.name).render(
        headline=headline(rows),
        verdict=verdict(rows),
        table=table,
        notes=footnotes(rows),
        has_intervals=any(cell.interval for line in table.lines for cell in line.cells),
        several=any("seeds" in row for row in rows),
        details=build_table(rows, DETAILS),
        targets=target_table(rows),
        differences=summary.differences,
        widths=beam_width_charts(rows),
        training=quality_chart(curves),
        losses=loss_charts(curves),
        ids=read_quality(artifacts, "semantic_ids"),
        labels=read_quality(artifacts, "soft_labels"),
        costs=list_costs(artifacts),
        origins=list_origins(artifacts),
        examples=examples,
    )
