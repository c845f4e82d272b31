"""The plan as tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from distill.estimates.plan import Plan
from distill.estimates.stages import Stage
from distill.runtime.terminal import cell

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
LEAST_WIDTH = 124  # columns; narrower terminals break the lines, but no figure is cut


def size(count: float) -> str:
    """Write bytes in the unit that leaves fewer than four digits; nothing for 0."""
    if not count:
        return ""
    unit = 0
    while count >= 1000 and unit < len(UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.3g} {UNITS[unit]}"


def number(value: float) -> str:
    """Write a number with three digits, whole from 100 on; nothing for 0."""
    if not value:
        return ""
    return "< .01" if value < 0.01 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(plan: Plan) -> None:
    """Print the stages, the export's failures, the limits, and what breaks first."""
    console = Console()
    console.width = max(console.width, LEAST_WIDTH)
    w, h = plan.workload, plan.hardware
    console.print(
        f"{w.users:.3g} users, {w.items:.3g} items, {w.interactions:.3g} interactions; {w.targets:.3g} training "
        f"targets ({w.label_share:.0%} labelled); {plan.nodes} node{'s' if plan.nodes > 1 else ''} of "
        f"{h.gpus_a_node} {h.gpu}",
        markup=False,
        highlight=False,
    )
    console.print(stage_table(plan))
    console.print(
        f"{plan.money:,.0f} {h.currency} until the student is trained, {plan.storage_a_month:,.0f} a month for keeping "
        f"what was written. Prices: {h.prices_of}.",
        markup=False,
        highlight=False,
    )
    console.print(failure_table(plan))
    first = plan.first
    if first is None:
        text = "Nothing breaks at this size."
    else:
        console.print(limit_table(plan))
        when = (
            f"as the data grow, at {100 / first.load:.3g}% of this size" if first.grows else "at any size of the data"
        )
        text = f"Breaks first, {when}: {first.what} ({first.where}). Instead: {first.instead}."
    console.print(text, markup=False, highlight=False)


def stage_table(plan: Plan) -> Table:
    """A stage a row."""
    table = new_table(
        "stage", "on", "disk", "memory", "FLOPs", "GPU hours", "network", "hours", plan.hardware.currency, "bound by"
    )
    for stage in plan.stages:
        table.add_row(*map(cell, stage_row(stage)))
    return table


def stage_row(stage: Stage) -> tuple[str, ...]:
    """The cells of a stage."""
    return (
        stage.name,
        stage.runs_on,
        size(stage.disk_bytes),
        size(stage.memory_bytes),
        f"{stage.flops:.2e}" if stage.flops else "",
        number(stage.gpu_hours),
        size(stage.network_bytes),
        number(stage.hours),
        number(stage.money),
        stage.bound_by,
    )


def failure_table(plan: Plan) -> Table:
    """The export on reserved and spot machines, simulated, and hours by the formula."""
    table = new_table(
        "labels on", "hours", "by formula", "failures", "node hours repeated", "down", plan.hardware.currency
    )
    for failures in plan.failures:
        outcome = failures.simulated
        table.add_row(
            failures.machines,
            f"{outcome.hours:,.2f}",
            f"{failures.expected.hours:,.2f}",
            f"{outcome.failures:,}",
            f"{outcome.repeated_hours:,.2f}",
            f"{outcome.down_hours:,.2f}",
            number(failures.money),
        )
    return table


def limit_table(plan: Plan) -> Table:
    """The limits that break at this size; all of them stand in the JSON file."""
    table = new_table("breaks in", "what", "needs", "has")
    for limit in plan.limits:
        if limit.load > 1:
            is_bytes = limit.unit.startswith("bytes")
            unit = limit.unit.removeprefix("bytes").strip() if is_bytes else limit.unit
            write = size if is_bytes else (lambda value: f"{value:.3g}")
            has = f"{write(limit.capacity)} {unit}".rstrip()
            table.add_row(*map(cell, (limit.stage, limit.what, write(limit.need), has)))
    return table


def new_table(*heads: str) -> Table:
    """A table whose columns stand on the right where they hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for head in heads:
        is_text = head in ("stage", "on", "bound by", "labels on", "breaks in", "what")
        table.add_column(cell(head), justify="left" if is_text else "right", no_wrap=head != "what")
    return table
