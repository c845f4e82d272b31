"""The teacher's benchmark by its real command, on a network too small to tell anything."""

import json
import subprocess
import sys

import pytest
from test_finetune import ENVIRONMENT, ROOT


@pytest.mark.long
def test_benchmark(tmp_path):
    size = "--sizes.hidden_size 16 --sizes.intermediate_size 24 --sizes.num_hidden_layers 1 --batches 2 --repeats 1"
    base = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": 9300}  # fmt: skip
    size += f" --base_sizes {json.dumps(base, separators=(',', ':'))} --base_batches 2 --base_repeats 1"
    words = [*size.split(), "--memory", "false", "--json", tmp_path / "figures.json"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/bench.py", "teacher", *words],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in ("ratio_packed_vs_padded", "ratio_vs_hf_trainer", "ratio_useful_vs_hf_trainer"):
        assert figures[name] > 0, name
    for way in ("float32_loop", "bf16_loop", "trainer_bf16"):
        assert figures[f"ratio_base_vs_{way}"] > 0 and figures[f"base_peak_mib_{way}"] > 0
    assert 0 < figures["base_counted_share"] < 0.6  # titles are read, not counted
    assert figures["padding_share_trainer"] > 0.3  # lengths differ widely, and it does not sort
    assert max(figures["padding_share_padded"], figures["padding_share_packed"]) < figures["padding_share_trainer"]
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
