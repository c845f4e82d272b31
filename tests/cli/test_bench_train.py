"""The benchmark of the students' training by its real command, on networks too small to tell anything."""

import json
import subprocess
import sys

import pytest
from test_finetune import ENVIRONMENT, ROOT


@pytest.mark.long
def test_benchmark(tmp_path):
    size = "--preset demo --users 6 --batches 2 --batch_size 8 --k 4 --repeats 1 --steps 1"
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/bench.py", "train", *size.split(), "--json", tmp_path / "figures.json"],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    ratios = ["ratio_seq2seq_vs_hf_trainer", "ratio_causal_vs_seq2seq", "time_dwr_vs_distill", "memory_dwr_vs_distill"]
    for name in [*ratios, "time_dwr_vs_repeated", "ratio_nested_vs_seq2seq", "mib_distill", "mib_dwr_seq2seq"]:
        assert figures[name] > 0, name
    assert 0 <= figures["data_wait_share"] < 1
    assert 0.5 < figures["distinct_prefixes_share"] < 1
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
