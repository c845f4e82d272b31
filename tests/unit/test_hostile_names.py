"""Names and texts of others: tags stay text in pages, control characters are shown on terminals."""

import subprocess
import sys
from html.parser import HTMLParser

import pytest
from report_runs import NDCG, Facts, make_run, metric_rows

from distill.evaluation.compare import Comparison, print_comparison
from distill.evaluation.report.terminal import print_table
from distill.runtime.artifacts import ArtifactJob, read, write_json
from distill.runtime.charts import Line, line_chart
from distill.runtime.config import run
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.runtime.terminal import printable
from scripts import recommend, report
from student.recommender import Recommendation

NAMES = ['x"><img src=x onerror=alert(1)>', "$\\frac{", "\\g<9>", "a\x1b[31mb", "-->", "[bold]:smile:"]


def test_control_characters_are_shown():
    assert printable("a\x1b[2J\x9b\x00\x7f\r\u202e\udcff") == "a\\x1b[2J\\x9b\\x00\\x7f\\r\\u202e\\udcff"
    assert printable("Käse 🧀\n\t日本") == "Käse 🧀\n\t日本"


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.labels = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        assert not [name for name, _ in attributes if name.startswith("on") or name == "src"]
        self.tags.append(tag)
        self.labels += [value for name, value in attributes if name == "aria-label"]


def test_names_are_inert_in_the_report(tmp_path, capsys):
    rows = metric_rows(NDCG | dict.fromkeys(NAMES, 0.2))
    for row in rows:
        row["widths"] = [{"width": width, "diversity": 0.1, "invalid": 0.1, "ndcg@10": 0.1} for width in (5, 10)]
    make_run(tmp_path / "run", NDCG | dict.fromkeys(NAMES, 0.2), rows=rows, titles=[NAMES[0]] * 30)
    inputs = [read(tmp_path / "run/dataset", "dataset"), read(tmp_path / "run/semantic_ids", "semantic_ids")]
    curve = [{"epoch": epoch, "loss": 3 / epoch, "valid_ndcg@10": 0.1} for epoch in (1, 2)]
    for name in NAMES:
        with ArtifactJob("student", Facts(), tmp_path / "run/students" / name, inputs).write() as folder:
            write_json(folder / "curve.json", {"retriever": curve})
    run(report.main, report.Config, argv=["--run", str(tmp_path / "run")])
    page = Tags((tmp_path / "run/report/report.html").read_text())
    assert not {"img", "script", "bold"} & set(page.tags)
    assert {f"{printable(name)} by epoch" for name in NAMES} <= set(page.labels)
    written = capsys.readouterr()
    assert "\x1b[31m" not in written.out + written.err and "a\\x1b[31mb" in written.out
    assert "\x1b" not in (tmp_path / "run/report/report.md").read_text()


def test_dollars_and_groups_are_no_formulas():
    for name in NAMES:
        svg = line_chart([Line([1, 2], [1, 2], "var(--line1)")], name, "epoch", (3, 2), "first")
        assert "<img" not in svg and 'class="first' not in svg.partition("aria-label")[0]
    assert "$\\frac{" in line_chart([Line([1], [1], "red")], "$\\frac{", "epoch", (3, 2), "first")


def test_names_on_the_terminal(capsys):
    print_table(metric_rows(NDCG | dict.fromkeys(NAMES, 0.2)))
    values = {"a": 0.1, "b": 0.1, "difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    print_comparison(Comparison(3, {"recall@1": values}), "[b]\x1b[31m", "x")
    recommend.print_table(["h\x1b]0;t\x07"], [Recommendation("i\x1b[2J", 0.5, "[red]\x1b[31mtitle:smile:")])
    log.info("student \x1b[31m")
    out, error = capsys.readouterr()
    for text in (
        "a\\x1b[31mb",
        "[bold]:smile:",
        "[b]\\x1b[31m",
        "h\\x1b]0;t\\x07",
        "i\\x1b[2J",
        "[red]\\x1b[31mtitle:s",
    ):
        assert text in out
    assert "\x1b[31m" not in out and "\x07" not in out and error == "student \\x1b[31m\n"


def test_messages_of_errors(capsys):
    def fail(_):
        raise UserError("no \x1b[31m item")

    with pytest.raises(SystemExit):
        run(fail, recommend.Config, argv=[])
    assert capsys.readouterr().err == "error: no \\x1b[31m item\n"


def test_a_reader_that_goes_away():
    """As in `recommend.py … | head -1`: no traceback."""
    code = "from distill.runtime.config import run\nfrom scripts.recommend import Config\n"
    code += "run(lambda _: [print('x' * 1000) for _ in range(1000)], Config, argv=[])"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    writer.stdout.close()
    assert writer.stderr.read() == "" and writer.wait() == 141
