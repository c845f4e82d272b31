"""The benchmark of SETRec against beams by its real command, on networks too small to tell anything."""

import json
import subprocess
import sys

from test_finetune import ENVIRONMENT, ROOT


def test_benchmark(tmp_path):
    size = "--preset demo --batches [2] --catalogues [100] --repeats 1 --width 3"
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/bench.py", "sets", *size.split(), "--json", tmp_path / "figures.json"],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in ("ratio_t5_sets_vs_beams_b2", "ratio_t5_sets_vs_generate_b2", "ratio_causal_sets_vs_beams_b2"):
        assert figures[name] > 0, name
    assert figures["items"] == 9922 and figures["users_per_s_t5_100_items"] > 0
    assert "ratio_causal_sets_vs_generate_b2" not in figures  # only T5 has the student's weights
