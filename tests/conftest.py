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
SLOW_UNIT_TESTS = (  # they train, or export graphs; `make test-fast` leaves them out
    "test_graph_export.py::test_onnx",
    "test_graph_export.py::test_the_file",
    "test_large.py",
    "test_qlora.py",
    "test_resume.py",
    "test_student_trainer.py",
    "test_teacher_trainer.py",
    "test_recommender.py::test_the_search_is_one_graph",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--long`."""
    parser.addoption("--long", action="store_true", help="run the tests marked `long`, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by their folder, and the slow ones among the unit tests; leave the long ones out unless asked for."""
    for item in items:
        folder, name = item.path.parent.relative_to(ROOT).as_posix(), item.nodeid.rpartition("/")[2]
        for marker in MARKERS.get(folder, ["slow"] if name.startswith(SLOW_UNIT_TESTS) else []):
            item.add_marker(marker)
    if not config.getoption("--long"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA of two layers on disk, for networks that start from one; read, never written."""
    from tiny_llms import NETWORKS, checkpoint

    return checkpoint(tmp_path_factory.mktemp("bases") / "base", NETWORKS["llama"], [])
