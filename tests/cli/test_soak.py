"""The soak in short: some commands, killed at a few changes to files, on full disks and with damaged inputs.

`make soak` is the whole of it. It runs in a process of its own, which forks: no tensor may have been computed before.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


STAGES = ["embeddings", "labels", "push", "sasrec"]


@pytest.mark.long
def test_broken_off_commands_end_as_unbroken_ones(tmp_path):
    words = [f"--stages={','.join(STAGES)}", "--checks=kills,two_runs,full_disk,damage", "--limit=2", "--random=1"]
    words += [f"--root={tmp_path / 'soak'}", f"--output={tmp_path / 'results.json'}"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.soak", *words],
        capture_output=True, text=True, cwd=ROOT, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert [result["stage"] for result in results] == STAGES
    for result in results:
        assert not result["faults"]
        assert result["trials"]["kill"] == {"equal": 2} and result["trials"]["random"] == {"equal": 1}
        damage = result["trials"]["damage"]
        assert damage.get("refused", 0) + damage.get("repaired", 0) >= 2
    # where no tmpfs can be mounted, only large files are limited
    assert sum(result["trials"].get("full_disk", {}).get("equal", 0) for result in results) >= 1


def test_unknown_stages_are_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.soak", "--stages=tigre", f"--root={tmp_path / 'soak'}"],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and "Unknown name 'tigre'. Did you mean 'tiger'?" in done.stderr
    assert not list(tmp_path.iterdir())
