"""Helpers of the tests of embed_items.py and build_semantic_ids.py: a small data set, and running both commands."""

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from distill.data.dataset import write_dataset
from distill.runtime.artifacts import ArtifactJob
from distill.runtime.config import run
from distill.semantic_ids import embeddings

ROOT = Path(__file__).parents[2]
DEFAULTS = {"embed_items.py": "demo/embeddings.yaml", "build_semantic_ids.py": "demo/semantic_ids.yaml"}
KINDS, LINES = ["tent", "kettle", "lamp", "rope"], ["aurora", "basalt", "cedar", "delta", "ember"]
TITLES = [f"{line} {kind} number {i}" for i, (kind, line) in enumerate((k, n) for k in KINDS for n in LINES)]


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def make_dataset(root, titles, ids=None, name="dataset"):
    ids = ids or [f"item{i}" for i in range(len(titles))]
    items = pa.table({"item_id": ids, "title": titles, "categories": [title.split(" ")[-1] for title in titles]})
    with ArtifactJob("dataset", Nothing(), root / name).write() as folder:
        write_dataset(folder, items, ["u", "v"], [np.array([0, 1, 2]), np.array([2, 1, 0, 3])])


def make_embeddings(root, rows, name="embeddings"):
    with ArtifactJob("embeddings", Nothing(), root / name).write() as folder:
        embeddings.write(folder, np.asarray(rows, dtype=np.float32), [f"item{i}" for i in range(len(rows))])


def real_command(script, root, *words, launcher=()):
    """Run the command in a new process."""
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "scripts" / script), "--run", str(root), *words],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # tiny tensors: threads would only wait for each other
    )
    return done.returncode, done.stdout, done.stderr


def command_of(script):
    """Load a script as a module."""
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / "scripts" / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def command(script, root, *words):
    """Run the command within this process: importing torch again would take seconds."""
    module = command_of(script)
    code, out, error = 0, io.StringIO(), io.StringIO()
    with contextlib.chdir(root), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            run(module.main, module.Config, DEFAULTS[script], ["--run", str(root), *words])
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), error.getvalue()


def refused(script, root, *words, kind):
    code, _, error = command(script, root, *words)
    assert code == 2, error
    assert error.startswith("error: ") or "\nerror: " in error
    assert "Traceback" not in error
    assert not (root / kind).exists() and not (root / f"{kind}.partial").exists()
    return error


def write_json(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)
