"""Search a student's settings on the validation split.

    python scripts/search.py --config configs/demo/search.yaml

Each trial runs student/train.py. Writes `trials.csv`, `search.md`, and `best.yaml`, a config for student/train.py. A
killed search goes on where it was; more `--trials` continue it.
"""

from __future__ import annotations

from distill.runtime.config import run
from student.search import search
from student.search_config import Config

if __name__ == "__main__":
    run(search, Config, "demo/search.yaml")
