"""The benchmark of growth by its real command, at sizes too small to tell anything."""

import json
import subprocess
import sys

import pytest
from test_finetune import ENVIRONMENT, ROOT


@pytest.mark.long
def test_benchmark(tmp_path):
    sizes = ["--smallest", "2", "--largest", "2", "--largest_trie", "4", "--largest_ids", "2"]
    files = ["--json", tmp_path / "figures.json", "--figure", tmp_path / "scale.png"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/bench.py", "scale", *sizes, *files],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["examples_targets_1e2"] == 70  # ten users, each with items 2 to 8 as targets
    assert 0.1 < figures["trie_arrays_mib_1e4"] < 1 and 500 < figures["read_bytes_a_target_1e2"] < 900
    assert {
        "trie_s_1e3",
        "ids_s_1e2",
        "examples_mib_1e2",
        "read_s_1e2",
        "labels_s_1e2",
        "pairs_s_1e2",
    } <= figures.keys()
    assert figures["counts_files_1e4"] == 1 and figures["counts_s_1e4"] > 0
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
