"""Export a student's whole search, histories in and ranked items out, as one graph.

    python scripts/export_model.py --student runs/demo/students/dwr --output exported/dwr --format onnx

ONNX runs without this project and without torch (docs/serving.md has the file); it needs the extra `export`.
AOTInductor compiles for the processor that it runs on and needs a C++ compiler.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import PositiveInt

from distill.runtime.config import run
from distill.runtime.logs import log
from distill.runtime.new_folder import check_free, new_folder
from student.config import GraphFormat


@dataclass(frozen=True)
class Config:
    """Export the search: python scripts/export_model.py --student FOLDER --output FOLDER [--field value ...]."""

    student: Path
    """Folder of a student without memories."""
    output: Path
    """New folder."""
    format: GraphFormat = "onnx"
    """onnx (model.onnx, for ONNX Runtime), onnx-int8 (the same in 8 bits: smaller, faster for many users, lists nearly
    the same), aoti (model.pt2, for torch._inductor.aoti_load_package) or aoti-bf16 (the same with products in bf16,
    for processors that multiply in it; lists nearly the same)."""
    k: PositiveInt = 10
    """Items of a list."""
    width: PositiveInt = 20
    """Beams (paper: 20); at least k are used."""
    exclude_bought: bool | None = None
    """Never rank items of the history (default: as the student was trained)."""
    batch: PositiveInt | None = None
    """Users of every call (default: any number)."""


def main(config: Config) -> None:
    """Check, then write all files or none."""
    check_free(config.output)

    from student.graph_export import check_tools, write_export  # imported late: they load torch
    from student.graphs import precision_of
    from student.recommender import Recommender
    from student.search_graph import SearchGraph

    check_tools(config.format)
    student = Recommender.from_pretrained(config.student, precision="float32")
    graph = SearchGraph(student, config.k, config.width, config.exclude_bought, precision_of(config.format))
    with new_folder(config.output) as folder:
        write_export(graph, folder, config.format, config.batch)
    log.info(f"wrote {', '.join(sorted(path.name for path in config.output.iterdir()))} to {config.output}")


if __name__ == "__main__":
    run(main, Config)
