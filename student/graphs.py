"""Exported graphs that answer for a student's networks: search and scores without Python between the operations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from distill.runtime.errors import UserError
from student.config import GraphFormat

FILES: dict[GraphFormat, str] = {
    "onnx": "model.onnx", "onnx-int8": "model.onnx", "aoti": "model.pt2", "aoti-bf16": "model.pt2",
}  # fmt: skip
Run = Callable[..., list[np.ndarray]]


def precision_of(graph_format: GraphFormat) -> Literal["float32", "bfloat16"]:
    """Return the precision in which a graph is captured for a format; int8 rounds afterwards."""
    return "bfloat16" if graph_format == "aoti-bf16" else "float32"


class Graphs:
    """A search of one width and the scores of given items, on a processor.

    Args:
        search: as `SearchGraph`; its inputs are `recent` and, where bought items are excluded, `bought`.
        score: as `ScoreGraph`.
        width: beams and places of the search.
        exclude_bought: whether the search excludes the history's items.
    """

    def __init__(self, search: Run, score: Run, width: int, exclude_bought: bool):
        self._search, self._score, self.width, self.exclude_bought = search, score, width, exclude_bought

    def can_search(self, width: int, exclude_bought: bool) -> bool:
        """Tell whether this is the search that is asked for."""
        return width == self.width and exclude_bought == self.exclude_bought

    def search(self, recent: Tensor, bought: Tensor | None) -> list[np.ndarray]:
        """Rank items; arguments and results as `SearchGraph.forward`, `bought` None where it is `recent`."""
        inputs = (recent, recent if bought is None else bought) if self.exclude_bought else (recent,)
        return self._search(*inputs)

    def score(self, recent: Tensor, items: Tensor) -> np.ndarray:
        """Score items; arguments and results as `ScoreGraph.forward`."""
        return self._score(recent, items)[0]


def load_graph(folder: Path, graph_format: GraphFormat) -> Run:
    """Load a graph as a function from tensors to arrays.

    Args:
        folder: holds the file of the format; model.pt2 is machine code: load what you have compiled yourself.
        graph_format: of the file.

    Raises:
        UserError: ONNX Runtime is missing.
    """
    path = folder / FILES[graph_format]
    if path.suffix == ".pt2":
        compiled = torch._inductor.aoti_load_package(str(path))
        return lambda *inputs: [part.numpy() for part in compiled(*inputs)]
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError(f"ONNX graphs need {error.name}: pip install 'lohrec-distill[export]'.") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, map(Tensor.numpy, inputs), strict=True)))
