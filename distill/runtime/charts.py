"""Charts as inline SVG for HTML pages; their colours are CSS values of the page, so they follow light and dark mode.

matplotlib accepts only fixed colours. Each chart is therefore drawn with placeholder colours, which are replaced by the
page's CSS values in the finished SVG.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from distill.runtime.terminal import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GRID = "#010203", "#010204"  # placeholders for text, and for axes and grid lines
PAGE_COLOURS = {INK: "currentColor", GRID: "var(--rule)"}
FIRST_SERIES = 0x0A0B00  # placeholder of the first line or bar; the next ones follow

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a name may hold $
    "svg.hashsalt": "report",  # equal charts, equal bytes
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


class Line(NamedTuple):
    """One line of a chart: coordinates, its CSS colour, and whether it is dashed."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dashed: bool = False


def line_chart(lines: Sequence[Line], title: str, x_label: str, size: tuple[float, float], name: str) -> str:
    """Draw lines over an integer axis; returns "" if no line has a value.

    Args:
        lines: what is drawn.
        title: stands above the chart.
        x_label: what the horizontal axis counts.
        size: width and height in inches.
        name: prefix of the SVG's ids; no other chart of the page may have it.
    """
    if not any(line.y for line in lines):
        return ""
    import matplotlib  # here, because `--help` should not wait for it
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for number, line in enumerate(lines):
            style = "--" if line.dashed else "-"
            axes.plot(line.x, line.y, style, color=_placeholder(number), linewidth=1.8, marker="o", markersize=2.5)
        axes.set_title(printable(title), loc="left", fontsize=10)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        return inline_svg(figure, [line.colour for line in lines], name, f"{title} by {x_label}")


def bar_chart(
    labels: Sequence[str], series: Mapping[str, Sequence[float]], colours: Sequence[str], name: str, title: str
) -> str:
    """Draw groups of bars side by side, with the legend above.

    Args:
        labels: one for each group.
        series: values of each series by its name, as many as there are labels.
        colours: CSS colour of each series.
        name: prefix of the SVG's ids; no other chart of the page may have it.
        title: read aloud by screen readers; not drawn.
    """
    import matplotlib
    from matplotlib.figure import Figure

    width = 0.8 / len(series)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.0), layout="constrained")
        axes = figure.add_subplot()
        for number, (legend, values) in enumerate(series.items()):
            left = [group + width * number for group in range(len(labels))]
            axes.bar(left, values, 0.95 * width, label=legend, color=_placeholder(number))
        axes.set_xticks([group + width * (len(series) - 1) / 2 for group in range(len(labels))], labels)
        figure.legend(loc="outside upper left", ncols=len(series), frameon=False)
        return inline_svg(figure, colours, name, title)


def inline_svg(figure: Figure, colours: Sequence[str], name: str, label: str) -> str:
    """Convert a figure to an SVG element with the page's colours and with ids that are unique in the page.

    Args:
        figure: drawn with `INK`, `GRID` and the placeholders of the series.
        colours: CSS colour of each series.
        name: prefix of all ids.
        label: read aloud by screen readers.
    """
    buffer = io.StringIO()
    metadata: dict[str, Any] = {"Date": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    series = {_placeholder(number): colour for number, colour in enumerate(colours)}
    for placeholder, colour in (PAGE_COLOURS | series).items():
        svg = svg.replace(placeholder, colour)
    svg = re.sub(r'\bid="', lambda _: f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', lambda match: f"{match[1]}#{name}-", svg)
    opening = f'<svg role="img" aria-label="{html.escape(printable(label))}"'
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)  # the style sheet sets the size
    return svg.replace("<svg", opening, 1)


def _placeholder(number: int) -> str:
    return f"#{FIRST_SERIES + number:06x}"
