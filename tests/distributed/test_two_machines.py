"""Two machines without a common disk train as one with two processes; a cut cable ends the launch, which then resumes.

The machines are network namespaces, the launchers and commands the real ones. Each machine has a copy of the inputs;
the first one gets the result.
"""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from student_shop import K, make_shop
from two_machines import ADDRESSES, TwoMachines, skip_without_namespaces

from distill.runtime.artifacts import write_json
from teacher.config import Config
from teacher.finetune import main

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
SILENCE = "4"  # seconds
STUDENT = {
    "backbone": "causal", "variant": "dtr", "epochs": 4, "ranker_epochs": 1, "batch_size": 4, "candidates": K,
    "max_history": 4, "valid_users": 15, "width": 5, "margin": 0.3, "checkpoint_every": 2, "buffer_rows": 60,
    "tracker": "none",
}  # fmt: skip
# wide enough that ZeRO-3 cuts the matrices: it leaves what has less than 1e5 numbers whole
TEACHER = {
    "sizes": {
        "hidden_size": 320, "intermediate_size": 400, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "vocab_size": 320, "tasks": {"stream": 1.0}, "epochs": 6, "batch_tokens": 60, "lr": 0.002, "max_history": 4,
    "valid_users": 9, "patience": 0, "checkpoint_every": 2, "tracker": "none",
}  # fmt: skip
SCRIPTS = {"student": ROOT / "student/train.py", "teacher": ROOT / "teacher/finetune.py"}


@pytest.fixture(scope="module")
def pair():
    """Two machines with the same inputs on both disks."""
    skip_without_namespaces()
    machines = TwoMachines()
    try:
        first, second = machines.disks
        make_shop(first, [4, 4, 5, 6, 9, 13, 4, 4, 7, 5, 6, 8, 5, 5, 12, 6, 4], shards=1)
        write_json(first / "student.yaml", STUDENT)  # JSON is YAML
        write_json(first / "teacher.yaml", TEACHER)
        shutil.copytree(first, second, dirs_exist_ok=True, ignore=shutil.ignore_patterns("hosts"))
        yield machines
    finally:
        machines.close()


def launcher(kind, machine):
    """DDP by torchrun, ZeRO-3 by Accelerate with the configuration that users get."""
    if kind == "student":
        words = [BIN / "torchrun", "--nnodes", 2, "--nproc_per_node", 1, "--node_rank", machine]
        return [*words, "--master_addr", ADDRESSES[0], "--master_port", 29500, "--"]
    words = [BIN / "accelerate", "launch", "--config_file", ROOT / "configs/accelerate/multinode.yaml"]
    words += ["--machine_rank", machine, "--main_process_ip", ADDRESSES[0]]
    return [*words, "--num_processes", 2, "--mixed_precision", "no"]


def start(pair, kind, output, *options):
    """Start a training on both machines."""
    script = [SCRIPTS[kind], "--config", pair.place / f"{kind}.yaml", "--run", pair.place, "--machine_silence", SILENCE]
    words = [*script, "--output", pair.place / output, *options]
    return [pair.start(machine, [*launcher(kind, machine), *words], **ENVIRONMENT) for machine in (0, 1)]


def end(launches, seconds=240):
    """Wait for both launches; returns exit codes and what they logged."""
    logs = [launch.communicate(timeout=seconds)[0] for launch in launches]
    return [launch.returncode for launch in launches], logs


def cut_in_training(pair, kind, output):
    """Cut the cable when both machines have a checkpoint; returns what they log until they end, not by 0."""
    launches = start(pair, kind, output)
    folders = [disk / f"{output}.partial/checkpoints" for disk in pair.disks]
    until = time.monotonic() + 240
    while not all(list(folder.glob("step-*[0-9]")) for folder in folders):
        assert time.monotonic() < until and all(launch.poll() is None for launch in launches), end(launches)
        time.sleep(0.005)
    pair.cut()
    codes, logs = end(launches, seconds=120)
    pair.mend()
    assert 0 not in codes and not any((disk / output).exists() for disk in pair.disks), logs
    return logs


@pytest.mark.parametrize("kind", ["student", pytest.param("teacher", marks=pytest.mark.long)])
def test_a_cut_cable_ends_the_launch_and_it_resumes(pair, kind, tmp_path):
    for log in cut_in_training(pair, kind, kind):
        assert log.count("error: ") == 1 and "no sign of life from machine" in log
        assert "Start the same command again on every machine; it goes on from the last checkpoint" in log
        assert f"    {'torchrun' if kind == 'student' else 'accelerate'} " in log
    codes, logs = end(start(pair, kind, kind))
    assert codes == [0, 0], logs
    assert "goes on from step" in logs[0]
    assert [[path.name for path in disk.glob(f"{kind}*") if path.is_dir()] for disk in pair.disks] == [[kind], []]
    assert not any(list(disk.glob("*.lock")) for disk in pair.disks)
    {"student": compare_student, "teacher": compare_teacher}[kind](pair.disks[0], tmp_path / kind)


def compare_student(run, output):
    """One machine with two processes makes the same bytes, without a break, with dropout."""
    words = [BIN / "torchrun", "--standalone", "--nproc_per_node", 2, "--", SCRIPTS["student"]]
    words += ["--config", run / "student.yaml", "--run", run, "--output", output]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "ranker.safetensors", "curve.json"):
        assert (run / "student" / name).read_bytes() == (output / name).read_bytes()


def compare_teacher(run, output):
    """One process takes the same steps: within 1e-4, sums in another order."""
    main(replace(Config(run=run, **TEACHER), output=output, accumulation=2))
    weights, expected = (load_file(folder / "model.safetensors") for folder in (run / "teacher", output))
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, atol=1e-4, err_msg=name)
    curves = [json.loads((folder / "curve.json").read_text()) for folder in (run / "teacher", output)]
    np.testing.assert_allclose(*([list(row.values()) for row in curve] for curve in curves), rtol=1e-4)
