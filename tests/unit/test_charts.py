"""Charts as inline SVG, Markdown tables, and running commands."""

import re
import sys
import xml.etree.ElementTree as ET

import pytest

from distill.runtime.charts import Line, bar_chart, line_chart
from distill.runtime.errors import UserError
from distill.runtime.markdown import markdown_table
from distill.runtime.processes import run_command


def check_svg(svg, name, label):
    root = ET.fromstring(svg)
    assert root.get("role") == "img" and root.get("aria-label") == label
    assert root.get("width") is None and root.get("height") is None and root.get("viewBox")
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert ids and all(each.startswith(f"{name}-") for each in ids) and len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]*)\)", svg) + re.findall(r'href="#([^"]*)"', svg)
    assert used and set(used) <= set(ids)
    assert "currentColor" in svg and not re.search(r"#0[a1]0[b2]0", svg)  # no placeholder is left


def test_line_chart():
    lines = [Line([1, 2], [0.1, 0.2], "var(--line1)"), Line([1, 2], [0.2, 0.1], "var(--line5)", dashed=True)]
    svg = line_chart(lines, "R & D", "epoch", (3, 2), "first")
    check_svg(svg, "first", "R & D by epoch")
    assert "var(--line1)" in svg and "var(--line5)" in svg and "var(--rule)" in svg and "stroke-dasharray" in svg
    assert svg == line_chart(lines, "R & D", "epoch", (3, 2), "first")  # equal input, equal bytes
    assert line_chart([Line([], [], "var(--line1)")], "none", "epoch", (3, 2), "second") == ""


def test_bar_chart():
    svg = bar_chart(["a", "b"], {"found": [1, 2], "chance": [2, 1]}, ["var(--one)", "var(--two)"], "bars", "shares")
    check_svg(svg, "bars", "shares")
    assert svg.count("var(--one)") == svg.count("var(--two)") == 2 + 1  # bars, and the legend


def test_markdown_table():
    assert markdown_table(["a", "b", "c"], [["x|y", 1, "z"]], text_columns=(0, 2)) == (
        "| a | b | c |\n|---|---:|---|\n| x\\|y | 1 | z |\n"
    )


def test_commands():
    run_command(sys.executable, "-c", "pass")
    with pytest.raises(UserError, match=r"This command failed, .* 'raise SystemExit\(3\)'"):
        run_command(sys.executable, "-c", "raise SystemExit(3)")
