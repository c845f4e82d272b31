"""The real command on small made-up artifacts: what the report says, and what bad input is told."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import NDCG, TITLES, Facts, make_run, metric_rows

from distill.data.dataset import write_dataset
from distill.runtime.artifacts import MANIFEST, ArtifactJob, read

ROOT = Path(__file__).parents[2]
VOID = {"meta", "link", "br", "img", "hr", "input"}


def command(root, *words):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "report.py"), "--run", str(root / "run"), *words],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stdout, done.stderr


def refused(root, *words):
    code, _, error = command(root, *words)
    assert code == 2, error
    assert error.startswith("error: ") and "Traceback" not in error
    assert not (root / "run" / "report").exists() and not (root / "run" / "report.partial").exists()
    return error


class Page(HTMLParser):
    """Checks that tags close in order and ids are unique; collects text by the id of the table row."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.rows = [], [], {}
        self.feed(page)
        self.close()
        assert not self.open
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        assert tag not in ("script", "img", "link", "iframe")
        assert not found.keys() & {"src", "srcset"}
        assert found.get("href", "#").startswith("#") and found.get("xlink:href", "#").startswith("#")
        if "id" in found:
            self.ids.append(found["id"])
        if tag not in VOID:
            self.open.append((tag, found.get("id", "")))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, name in self.open:
            if name.startswith("system-") and data.strip():
                self.rows.setdefault(name.removeprefix("system-"), []).append(data.strip())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    make_run(root / "run")
    code, out, error = command(root)
    assert code == 0, error
    return root, out


def test_files_and_values(finished):
    root, out = finished
    report = root / "run" / "report"
    assert sorted(path.name for path in report.iterdir()) == [MANIFEST, "metrics.json", "report.html", "report.md"]
    assert json.loads((report / "metrics.json").read_text()) == metric_rows(NDCG)
    evaluation = read(root / "run" / "evaluation", "evaluation")
    assert read(report, "report").inputs == evaluation.inputs | {"evaluation": evaluation.fingerprint}
    assert str(report / "report.html") in out
    assert re.search(r"dwr ▲ +0\.2500 +0\.3500 +0\.2400 +0\.2500", out)
    assert "Best learned system by NDCG@10: teacher, 0.3000, 50.0% above the floor (transitions, 0.2000)." in out


def test_markdown(finished):
    text = (finished[0] / "run" / "report" / "report.md").read_text()
    assert "| teacher ▲ | **0.3000** | **0.4000** |" in text
    assert "| transitions (floor) | 0.2000 | 0.3000 |" in text
    assert "| oracle | 0.5000 |" in text and "| tiger | 0.1000 |" in text
    assert "1.23 M" in text and "1.00%" in text
    assert "transitions 0.3456" in text and "- transitions: counts & more" in text
    for name in ("dataset", "semantic_ids", "teacher", "soft_labels", "students/tiger", "students/dwr", "evaluation"):
        made = read(finished[0] / "run" / name, "student" if "/" in name else name)
        assert made.manifest["command"] in text
        assert re.search(rf"^\| {name} \| [\d.]+ s \| [\d,]+ MiB \|", text, re.MULTILINE)
    assert "report.py" in text


def test_page(finished):
    page = (finished[0] / "run" / "report" / "report.html").read_text()
    rows = Page(page).rows
    assert list(rows) == list(NDCG)
    assert rows["transitions"][:2] == ["transitions", "floor"]
    marked = [name for name, words in rows.items() if "▲" in words]
    assert marked == ["teacher", "dwr"]  # tiger and popularity are below the floor; the oracle is no competitor
    assert page.count('class="n best">0.3000') == 2  # recall@5 and NDCG@10 of the teacher, not of the oracle
    assert "0.0312" in page and "0.4321" in page
    assert page.count("<svg") == 5  # quality of all; loss of teacher, tiger, dwr and its ranker
    assert "dwr (ranker)" in page
    assert "not the one here now" not in page and "students/tiger <code" in page  # the evaluation's parents, by name


def test_intervals_details_and_widths(tmp_path):
    rows = metric_rows(NDCG)
    for row in rows:
        row |= {"ndcg@10_low": 0.0123, "ndcg@10_high": 0.5678, "mrr@20": 0.3141, "gini@10": 0.271, "catalogue@10": 0.5}
        groups = [
            {"group": 1, "items": 29, "users": 7, "recall@10": 0.7654},
            {"group": "unseen", "items": 1, "users": 0},
        ]
        row |= {"by_popularity": groups, "recall@10_reachable": 0.6543, "recall@10_unreachable": 0.0321}
    rows[2]["reachable"] = 0.25
    rows[-1]["ndcg@10_above_floor"] = {"difference": 0.05, "low": -0.01, "high": 0.11, "p": 0.0421}
    for row in rows[-2:]:
        row["widths"] = [{"width": w, "ndcg@10": 0.1, "diversity": w / 100, "invalid": 0.2} for w in (10, 50)]
    make_run(tmp_path / "run", rows=rows)
    code, out, error = command(tmp_path)
    assert code == 0, error
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    Page(page)
    assert page.count("0.0123 … 0.5678") == len(rows) and "0.0123" not in out  # the terminal's table stays small
    assert "0.3141" in page and "0.271" in page and "50.00%" in page
    assert "+0.0500" in page and "-0.0100 … +0.1100" in page and "0.042" in page
    assert page.count("0.7654") == page.count("0.6543") == page.count("0.0321") == len(rows) and "29 items" in page
    assert "25.0% of users" in page and "75.0%" in page
    markdown = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "| system | reachable (25.0% of users) | unreachable (75.0% of users) | 1 (29 items, 7 users) |" in markdown
    assert "| dwr | 0.6543 | 0.0321 | 0.7654 |" in markdown  # no user's item is unseen
    assert "- dwr − tiger: +0.5000 (+0.5000 … +0.5000), p = 0" in markdown  # third for all, and nowhere
    assert "dwr ▲" not in out and "teacher ▲" in out  # dwr's difference may be chance; the teacher's was not tested
    assert page.count("<svg") == 5 + 3 and "diversity of all beams by beams" in page
    # with a second seed the spread speaks in the interval's place
    other = [{"group": 1, "items": 29, "users": 7, "recall@10": 0.5654}, rows[0]["by_popularity"][1]]
    more = {"seed": 1, "by_popularity": other}
    make_run(tmp_path / "b", rows=[row | more | {"ndcg@10": row["ndcg@10"] + 0.01} for row in rows], seed=1)
    lists = tmp_path / "b" / "evaluation" / "lists.parquet"  # where dwr misses the right item, as tiger does
    table = pq.read_table(lists)
    pq.write_table(table.set_column(table.column_names.index("dwr"), "dwr", table["tiger"]), lists)
    code, out, error = command(tmp_path, "--seeds", f"[{tmp_path / 'b'}]")
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert code == 0 and "0.0123 … 0.5678" not in page and "+0.0500" not in page and "first run" in page
    assert page.count("0.6654") == len(rows)  # the mean of both runs
    markdown = (tmp_path / "run" / "report" / "report.md").read_text()
    for reference in ("transitions", "tiger"):  # half of third place: a user's mean over the runs
        assert f"- dwr − {reference}: +0.2500 (+0.2500 … +0.2500), p = 0" in markdown
    assert "dwr ▲" in out and "teacher ▲" not in out  # the teacher's lists are the floor's, whatever its figures say


def test_examples(finished):
    page = (finished[0] / "run" / "report" / "report.html").read_text()
    assert page.count('<article class="example">') == 8  # no more users than were evaluated
    assert "Bolts &amp; Nuts &lt;M8&gt;" in page and "<M8>" not in page
    assert ">B001<" in page  # an item without a title
    assert page.count("hit at 3") == 8 and page.count("no hit") == 16
    assert page.count('<li class="hit" title="Thing number 20">') == 8
    assert "(3 earlier)" in page


def test_finished_work_is_not_repeated(finished):
    root, first = finished
    before = (root / "run" / "report" / MANIFEST).read_text()
    code, out, error = command(root)
    assert code == 0 and "report: finished" in error
    assert out == first  # the table is shown all the same
    assert (root / "run" / "report" / MANIFEST).read_text() == before


def test_what_changed_is_said(tmp_path):
    make_run(tmp_path / "run")
    assert command(tmp_path, "--examples", "0")[0] == 0
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "<article" not in page and "#examples" not in page
    code, _, error = command(tmp_path, "--examples", "2")
    assert code == 0 and "made again, because examples (0 -> 2) changed" in error
    assert (tmp_path / "run" / "report" / "report.html").read_text().count("<article") == 2


def test_only_an_evaluation(tmp_path):
    make_run(tmp_path / "run", rows=metric_rows({"oracle": 0.5, "popularity": 0.1, "transitions": 0.2}))
    for name in ("semantic_ids", "teacher", "soft_labels", "students"):
        (tmp_path / "run" / name).rename(tmp_path / name)
    code, out, error = command(tmp_path)
    assert code == 0, error
    assert "No learned system was evaluated" in out
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    Page(page)
    assert "<svg" not in page and "not the one here now" in page  # the evaluation's parents are gone, and it says so


def test_seeds(tmp_path):
    make_run(tmp_path / "run")
    make_run(tmp_path / "b", NDCG | {"dwr": 0.27, "teacher": 0.9}, seed=1)
    make_run(tmp_path / "c", {k: v for k, v in (NDCG | {"dwr": 0.26}).items() if k != "teacher"}, seed=2)
    code, out, error = command(tmp_path, "--seeds", f"[{tmp_path / 'b'}, {tmp_path / 'c'}]")
    assert code == 0, error
    rows = {row["system"]: row for row in json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())}
    assert rows["dwr"]["ndcg@10"] == pytest.approx(0.26) and rows["dwr"]["ndcg@10_std"] == pytest.approx(0.01)
    assert rows["dwr"]["seeds"] == [0, 1, 2] and rows["teacher"]["seeds"] == [0, 1]
    assert rows["transitions"]["ndcg@10_std"] == 0 and rows["transitions"]["invalid@10"] is None
    assert rows["tiger"]["parameters"] == 1_234_567 and "parameters_std" not in rows["tiger"]
    assert "dwr ▲" in out and "0.2600 ± 0.0100" in out and "seeds 0, 1, 2" in out
    assert "Not in all 3 runs: teacher 2." in (tmp_path / "run" / "report" / "report.md").read_text()
    assert "teacher ▲" not in out  # .6 ± .42 is above .2 by less than its spread
    assert "± 0.0100" in (tmp_path / "run" / "report" / "report.html").read_text()
    code, _, error = command(tmp_path)
    assert code == 0 and "made again, because other seeds changed" in error


def test_seeds_that_do_not_fit(tmp_path):
    make_run(tmp_path / "run")
    make_run(tmp_path / "other", titles=["Else", *TITLES[1:]], seed=1)
    assert "another data set" in refused(tmp_path, "--seeds", f"[{tmp_path / 'other'}]")
    assert "named twice" in refused(tmp_path, "--seeds", f"[{tmp_path / 'run'}]")
    assert "No evaluation at" in refused(tmp_path, "--seeds", f"[{tmp_path / 'nowhere'}]")
    fewer = [row | {"users": 4} for row in metric_rows(NDCG, seed=1)]
    make_run(tmp_path / "fewer", rows=fewer, seed=1)
    assert "users 8 in one run, 4 in another" in refused(tmp_path, "--seeds", f"[{tmp_path / 'fewer'}]")


def test_nothing_evaluated(tmp_path):
    error = refused(tmp_path)
    assert "No evaluation at" in error and "python scripts/evaluate.py" in error


def test_bad_config(tmp_path):
    assert "Did you mean 'examples'?" in refused(tmp_path, "--exampels", "3")
    error = refused(tmp_path, "--examples", "-1")
    assert "--examples is -1; expected a whole number of at least 0" in error


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("evaluation/metrics.json", "[{", "is damaged"),
        ("evaluation/metrics.json", None, "Missing file"),
        ("evaluation/metrics.json", "[]", "a list of rows"),
        ("evaluation/metrics.json", '[{"system": "tiger", "ndcg@10": "high"}]', "should be a number, got 'high'"),
        ("evaluation/metrics.json", '[{"system": "tiger"}, {"system": "tiger"}]', "row 1"),
        ("evaluation/lists.parquet", "PAR1", "not a readable parquet file"),
        ("evaluation/manifest.json", None, "not a finished evaluation"),
        ("dataset/items.parquet", None, "Missing file"),
        ("teacher/curve.json", "{", "is damaged"),
        ("teacher/curve.json", "[3]", "a list of epochs"),
        ("teacher/manifest.json", "{", "is damaged"),
        ("semantic_ids/report.json", "}", "is damaged"),
    ],
)
def test_damaged_files(tmp_path, monkeypatch, name, text, said):
    make_run(tmp_path / "run")
    path = tmp_path / "run" / name
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    monkeypatch.setenv("LOHREC_NO_VERIFY", "1")  # as of earlier versions, whose manifests have no checksums
    error = refused(tmp_path)
    assert said in error and path.parent.name in error


def test_lists_of_another_data_set(tmp_path):
    make_run(tmp_path / "run")
    with ArtifactJob("dataset", Facts(), tmp_path / "run" / "dataset").write() as folder:
        write_dataset(folder, pa.table({"item_id": ["a", "b", "c"]}), ["u"], [np.arange(3)])
    assert "do not belong together" in refused(tmp_path)


def test_an_item_outside_the_catalogue(tmp_path, monkeypatch):
    monkeypatch.setenv("LOHREC_NO_VERIFY", "1")
    make_run(tmp_path / "run")
    path = tmp_path / "run" / "evaluation" / "lists.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "target", pa.array([99] * 8)), path)
    assert "names item 99, but the catalogue has 30" in refused(tmp_path)


def test_a_folder_in_the_way(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.txt").write_text("mine")
    assert "exists and is no report" in refused(tmp_path, "--output", str(tmp_path / "kept"))
    assert (tmp_path / "kept" / "mine.txt").read_text() == "mine"


def test_starts_without_heavy_libraries():
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); print({'torch', 'matplotlib', 'jinja2'} & sys.modules.keys())"
    )
    path = str(ROOT / "scripts" / "report.py")
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
