"""A terminal without UTF-8 gets escapes or ASCII, and one that is closed no traceback."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
EVERY_HELP = """
import sys
from faults.fuzz_commands import COMMANDS
from distill.runtime.config import run

for name, (config_class, _) in COMMANDS.items():
    try:
        run(lambda config: None, config_class, None, ["--help"])
    except SystemExit as stop:
        assert not stop.code, name
"""
TABLES = r"""
from distill.evaluation.compare import Comparison, print_comparison
from distill.runtime.config import run
from scripts import recommend
from student.recommender import Recommendation

def main(config):
    metrics = {"recall@10": {"a": 0.5, "b": 0.25, "difference": 0.25, "low": 0.1, "high": 0.4, "p": 0.01}}
    print_comparison(Comparison(7, metrics), "caf\xe9", "\u03b7 \u2212 \u03b2")
    recommend.print_table(["\xe9"], [Recommendation("\xe9", -1.0, "Zelt f\xfcr zwei")])

run(main, recommend.Config, None, [])
"""


def python(code, **more):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    words = [sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, env=os.environ | ASCII | {"PYTHONPATH": path}, **more)


def test_help_of_every_command():
    done = python(EVERY_HELP)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode("ascii").count("--config") >= 19 and b"Traceback" not in done.stderr


def test_tables():
    done = python(TABLES)
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode("ascii")
    assert "caf\\xe9" in text and "+0.2500" in text and "f\\xfcr zwei" in text


def test_help_for_a_reader_that_goes_away():
    """As in `recommend.py --help | true`."""
    code = "from distill.runtime.config import run\nfrom scripts.recommend import Config\n"
    code += "run(print, Config, None, ['--help'])"
    words = [sys.executable, "-c", code]
    writer = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    writer.stdout.close()
    assert writer.stderr.read() == "" and writer.wait() in (0, 141)  # argparse swallows the error of a long text
