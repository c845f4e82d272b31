"""Graphs of a student, exported when they are first needed and kept for the next start."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path

import torch

from distill.runtime.checksums import code_fingerprint
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.runtime.new_folder import new_folder
from student.config import GraphFormat
from student.graph_export import check_tools, write_graph
from student.graphs import Graphs, load_graph, precision_of
from student.models.item_text import sizes_to_json
from student.recommender import DEFAULT_WIDTH, Recommender
from student.search_graph import ScoreGraph, SearchGraph


def default_cache() -> Path:
    """Return the folder of kept graphs: `lohrec-distill/graphs` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lohrec-distill" / "graphs"


def with_graphs(
    student: Recommender, graph_format: GraphFormat, cache: Path, width: int = DEFAULT_WIDTH
) -> Recommender:
    """Return the same student answering by exported graphs, with its memories if there are any.

    Lists of another width, with bought items where the graph excludes them (or the reverse), and lists of some items
    only are searched as before.

    Args:
        student: on a processor.
        graph_format: what runs them, and in which precision.
        cache: folder of kept graphs; each is named by all that it depends on, and may be removed at any time.
        width: beams, and places of the lists.

    Raises:
        UserError: a student that cannot be exported or is on a GPU, or what writes or runs the format is missing.
    """
    if student.device.type != "cpu":
        raise UserError(f"Graphs are for processors, and the student is on {student.device}.")
    precision = precision_of(graph_format)
    search = SearchGraph(student.with_transition_memory(None), width, width, precision=precision)
    folder = cache / f"{graph_format}-{_fingerprint(search)}"
    parts = {"search": search, "score": ScoreGraph(student, precision)}
    if not folder.is_dir():
        check_tools(graph_format)
        log.info(f"graphs: exporting the search to {folder}, about a minute")
        with new_folder(folder) as partial:
            for name, graph in parts.items():
                (partial / name).mkdir()
                write_graph(graph, partial / name, graph_format)
    result = copy.copy(student)
    runs = [load_graph(folder / name, graph_format) for name in parts]
    result.graphs = Graphs(*runs, width=search.width, exclude_bought=search.exclude_bought)
    return result


def _fingerprint(search: SearchGraph) -> str:
    """Hash what a student's graphs depend on: weights, IDs, settings, versions, processor."""
    student = search.student
    settings = {
        "facts": {name: student.facts[name] for name in ("backbone", "scope", "max_history")},
        "sizes": sizes_to_json(student.model.config),
        "search": [search.width, search.exclude_bought],
        "code": [code_fingerprint(), torch.__version__],
        "processor": torch.backends.cpu.get_cpu_capability(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for network in (student.model, student.ranker):
        for name, tensor in network.state_dict().items() if network is not None else ():
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    digest.update(student.codes.numpy().tobytes())
    return digest.hexdigest()[:16]
