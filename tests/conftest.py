"""Before any test: offline, one thread, the package under test is this checkout's, and markers by place."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read by Hugging Face's libraries when they are first imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["NUMBA_DISABLE_JIT"] = "1"  # ranx would compile for a minute what runs in a moment

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

import pytest
import torch

import distill

ROOT = Path(__file__).resolve().parents[1]

# a plain `pip install .` leaves a copy that would be tested in place of the sources
assert Path(distill.__file__).resolve().is_relative_to(ROOT), f"distill comes from {distill.__file__}, not {ROOT}"

torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other

MARKERS = {"tests/cli": ["slow"], "tests/engines": ["slow"], "tests/distributed": ["slow", "distributed"]}
SLOW_UNIT_TESTS = {  # they train; `make test-fast` leaves them out
    "test_resume.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, and the slow files among the unit tests."""
    for item in items:
        names = MARKERS.get(item.path.parent.relative_to(ROOT).as_posix(), [])
        for name in [*names, *(["slow"] if item.path.name in SLOW_UNIT_TESTS else [])]:
            item.add_marker(name)
