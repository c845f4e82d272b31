"""Readers of raw interactions, one module a format.

Each reader has two functions: `files(folder, options)` lists the files it would read, and `read(folder, options)`
returns a `Source`. Readers work on columns and number ids while reading, so memory grows with interactions and distinct
ids, not with the length of the ids.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from distill.data.sources.base import Options, Source, group
from distill.data.sources.numbering import numbered

__all__ = ["DEFAULTS", "FORMATS", "Options", "Source", "group", "numbered", "reader"]

FORMATS = ("demo", "recbole", "lcrec", "table", "amazon", "movielens", "setrec")
# Raw reviews need preparation; the other formats usually come prepared.
DEFAULTS: dict[str, dict[str, Any]] = {"amazon": {"k_core": 5, "duplicates": "first", "clean_html": True}}


def reader(name: str) -> ModuleType:
    """Import the module that reads a format, one of `FORMATS`."""
    return importlib.import_module(f"distill.data.sources.{name}")
