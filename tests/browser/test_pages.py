"""Pages as a browser lays them out at the widths of a desktop, a tablet and a phone: nothing is cut off."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli.by_command import TITLES, make_dataset, real_command
from report_runs import NDCG, make_run, metric_rows

ROOT = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (1400, 900, 400)
VERDICT = (
    "Codewords are used evenly, 91% of them on the first level and 97% on the second; items that share two codewords "
    "are of the same category 3.4 times as often as by chance; 12.0% of the items shared an ID before repair."
)
PATH = "/data/" + "a_folder_with_a_long_name/" * 6 + "Instruments.index.json"

pytestmark = pytest.mark.browser

# Bounds of all cells and pictures that are displayed, and what the window shows.
MEASURE = """<script>
const box = (node) => {
  const { left, right, width, height } = node.getBoundingClientRect();
  const classes = node.closest("table")?.className ?? "";
  return { text: node.textContent.trim().slice(0, 40), tag: node.tagName, classes, left, right, width, height,
           hidden: Math.max(node.scrollWidth - node.clientWidth, 0), shown: node.offsetParent !== null };
};
const result = {
  window: innerWidth,
  document: document.documentElement.scrollWidth,
  scrolled: [...document.querySelectorAll(".scroll")].map((node) => node.scrollWidth - node.clientWidth),
  cells: [...document.querySelectorAll("th, td")].map(box).filter((cell) => cell.shown),
  charts: [...document.querySelectorAll("svg")].map((node) => node.getBoundingClientRect().toJSON()),
  words: document.body.innerText,
};
const output = document.createElement("pre");
output.id = "measurements";
output.textContent = JSON.stringify(result);
parent.document.body.append(output);
</script></body>"""


@pytest.fixture(scope="module")
def chromium():
    """The browser's command; Ubuntu's chromium-browser may be a stub that only names another package."""
    for path in filter(None, map(shutil.which, NAMES)):
        if subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    pytest.skip("needs Chromium: apt-get install chromium")


def layout(chromium, page, width, folder):
    """Measure a page in a frame of this width: Chromium's own window is never narrower than 500 pixels."""
    inner = html.escape(page.read_text(encoding="utf-8").replace("</body>", MEASURE))
    measured = folder / f"measured-{width}.html"
    frame = f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{inner}"></iframe>'
    measured.write_text(f'<!doctype html><meta charset="utf-8"><body>{frame}</body>', encoding="utf-8")
    words = [chromium, "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--dump-dom"]
    words += ["--window-size=1600,1000", f"--user-data-dir={folder / 'profile'}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        words.append("--no-sandbox")  # Chromium's sandbox refuses to run as root
    done = subprocess.run([*words, measured.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="measurements">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    result = json.loads(html.unescape(found[1]))
    assert result["window"] == width
    return result


def assert_nothing_is_cut(result):
    width = result["window"]
    assert result["document"] <= width
    assert result["cells"] and result["charts"]
    for cell in result["cells"]:
        assert cell["left"] >= -0.5 and cell["right"] <= width + 0.5 and cell["hidden"] <= 1, cell
    for chart in result["charts"]:
        assert chart["width"] > 100 and chart["height"] > 50 and chart["right"] <= width + 0.5, chart
    assert max(result["scrolled"], default=0) <= 1  # no table must be scrolled to be seen


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with every column, long names, intervals, and a run with another seed for the spread."""
    ndcg = NDCG | {"dwr-without-distill": 0.22, "teacher+transitions": 0.31}
    rows = metric_rows(ndcg)
    more = ("beam_missed@10", "recall@1", "recall@20", "ndcg@20", "mrr@20", "catalogue@10", "gini@10", "novelty@10",
            "teacher_coverage", "teacher_coordination", "recall@10_reachable", "recall@10_unreachable")  # fmt: skip
    for row in rows:
        row |= dict.fromkeys(more, 0.4321) | {"invalid@10": 0.1234, "parameters": 6_738_415_616, "users_per_s": 12345.6}
        for key in ("recall@10", "ndcg@10"):
            row |= {f"{key}_low": row[key] - 0.01, f"{key}_high": row[key] + 0.01}
        groups = [{"group": g, "items": 12345, "users": 23456, "recall@10": 0.5} for g in (1, 2, 3, 4, 5, "unseen")]
        row["by_popularity"] = groups
        row["ndcg@10_above_floor"] = {"difference": 0.05, "low": 0.01, "high": 0.09, "p": 0.0421}
    rows[1]["note"] = "budgets ((10,),), alpha 2.0, both False"
    rows[2] |= {"note": "window 20, decay 0.8, recency 0.6, last 5", "reachable": 0.5}
    root = tmp_path_factory.mktemp("report")
    make_run(root / "run", ndcg, rows=rows, ids_report={"verdict": VERDICT, "source": PATH})
    words = [sys.executable, ROOT / "scripts/report.py", "--run", root / "run"]
    subprocess.run(words, check=True, capture_output=True, cwd=root)
    return root / "run/report/report.html"


@pytest.mark.parametrize("width", WIDTHS)
def test_report_fits_the_window(chromium, report, width, tmp_path):
    result = layout(chromium, report, width, tmp_path)
    assert_nothing_is_cut(result)
    results = [cell for cell in result["cells"] if "results" in cell["classes"] and cell["tag"] == "TD"]
    assert len(results) == 8 * 10 and all(cell["width"] > 20 and cell["height"] > 10 for cell in results)
    facts = {cell["text"]: cell for cell in result["cells"] if "facts" in cell["classes"]}
    assert facts["0.0312"]["width"] > 40 and facts["0.4321"]["width"] > 40
    assert VERDICT in " ".join(result["words"].split())


def test_report_has_no_python_values(chromium, report, tmp_path):
    words = layout(chromium, report, WIDTHS[0], tmp_path)["words"]
    assert "10 items one hop away from the last item; weight 2.0 on transitions, forward only" in words
    assert not re.search(r"\(\(|\bTrue\b|\bFalse\b|\bNone\b", words)


@pytest.mark.parametrize("width", WIDTHS)
def test_page_of_semantic_ids_fits_the_window(chromium, ids_page, width, tmp_path):
    assert_nothing_is_cut(layout(chromium, ids_page, width, tmp_path))


@pytest.fixture(scope="module")
def ids_page(tmp_path_factory):
    root = tmp_path_factory.mktemp("ids")
    make_dataset(root, TITLES)
    for script, *words in (
        ("embed_items.py", "--embedder", "tfidf", "--dim", "8"),
        ("build_semantic_ids.py", "--quantiser", "rkmeans", "--levels", "4", "--codebook_size", "8"),
    ):
        code, _, error = real_command(script, root, *words)
        assert code == 0, error[-2000:]
    return root / "semantic_ids/report.html"
