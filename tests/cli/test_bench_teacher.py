"""The teacher's benchmark by its real command, on a network too small to tell anything."""

import json
import subprocess
import sys

from test_finetune import ENVIRONMENT, ROOT


def test_benchmark(tmp_path):
    size = "--sizes.hidden_size 16 --sizes.intermediate_size 24 --sizes.num_hidden_layers 1 --batches 2 --repeats 1"
    words = [*size.split(), "--memory", "false", "--json", tmp_path / "figures.json"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/bench.py", "teacher", *words],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in ("ratio_packed_vs_padded", "ratio_vs_hf_trainer", "ratio_useful_vs_hf_trainer"):
        assert figures[name] > 0, name
    assert figures["padding_share_trainer"] > 0.3  # lengths differ widely, and it does not sort
    assert max(figures["padding_share_padded"], figures["padding_share_packed"]) < figures["padding_share_trainer"]
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
