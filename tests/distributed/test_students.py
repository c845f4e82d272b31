"""Two processes train a student as one does, under DDP, ZeRO-2 and ZeRO-3; the last batch leaves one with nothing.

Equal means within 1e-4: sums of floats in another order, carried through some 20 steps of AdamW.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from student_shop import K, make_shop

from distill.artifacts import write_json
from student.train import Config, main

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SETTINGS = {
    "backbone": "causal",
    "variant": "dtr",
    "epochs": 2,
    "ranker_epochs": 1,
    "batch_size": 4,
    "candidates": K,
    "max_history": 4,
    "valid_users": 15,
    "dropout": 0.0,
    "width": 5,
    "margin": 0.3,
    "checkpoint_every": 2,
    "buffer_rows": 60,
    "tracker": "none",
}
ONE_SHARD_ON_CPUS = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
LAUNCHERS = {
    "ddp": [BIN / "torchrun", "--standalone", "--nproc_per_node", "2", "--"],
    **{
        f"zero{stage}": [
            BIN / "accelerate", "launch", "--config_file", ROOT / f"configs/accelerate/zero{stage}.yaml",
            *ONE_SHARD_ON_CPUS,
        ]
        for stage in (2, 3)
    },
}  # fmt: skip
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "MASTER_"))}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """17 users: the last global batch of 8 is one row."""
    folder = tmp_path_factory.mktemp("shop")
    make_shop(folder, [4, 4, 5, 6, 9, 13, 4, 4, 7, 5, 6, 8, 5, 5, 12, 6, 4], shards=1)
    write_json(folder / "student.yaml", SETTINGS)  # JSON is YAML
    return folder


@pytest.fixture(scope="module")
def one(root):
    """What one process makes of the same global batches, cut in two."""
    main(replace(Config(run=root, **SETTINGS), output=root / "one", accumulation=2))
    return root / "one"


@pytest.mark.parametrize("engine", LAUNCHERS)
def test_two_processes_train_as_one(root, one, engine):
    output = root / engine
    script = [ROOT / "student/train.py", "--config", root / "student.yaml", "--run", root, "--output", output]
    words = [str(word) for word in [*LAUNCHERS[engine], *script]]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=200, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    curves, expected = (json.loads((path / "curve.json").read_text()) for path in (output, one))
    for stage in ("retriever", "ranker"):
        rows = [[list(row.values()) for row in curve[stage]] for curve in (curves, expected)]
        np.testing.assert_allclose(*rows, rtol=1e-4)
    for name in ("model.safetensors", "ranker.safetensors"):
        found, weights = load_file(output / name), load_file(one / name)
        assert found.keys() == weights.keys()
        for key, value in weights.items():
            np.testing.assert_allclose(found[key], value, atol=1e-4, err_msg=key)
    assert not (output / "checkpoints").exists()
