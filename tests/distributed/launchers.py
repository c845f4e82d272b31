"""Launch commands on two processes of this machine: DDP by torchrun, DeepSpeed by Accelerate."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LONG = pytest.mark.long
TWO_ON_CPUS = ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
TORCHRUN = [BIN / "torchrun", "--standalone", "--nproc_per_node", "2", "--"]
ACCELERATE = [BIN / "accelerate-launch"]  # `accelerate launch`, started in five seconds less
LAUNCHERS = {
    "ddp": TORCHRUN,
    "zero2": [*ACCELERATE, "--config_file", ROOT / "configs/accelerate/zero2.yaml", *TWO_ON_CPUS],
    "zero3": [*ACCELERATE, "--config_file", ROOT / "configs/accelerate/zero3.yaml", *TWO_ON_CPUS],
}
# without what an outer launcher has set
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "MASTER_"))}
ENVIRONMENT |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
}
