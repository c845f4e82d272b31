"""A student's search, and its scores of given items, as modules that `torch.export` captures: graphs without Python."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from distill.runtime.errors import UserError
from student.precision import autocast
from student.recommender import Recommender

EXPORTED = ("nested", "causal", "seq2seq")  # backbones
EXAMPLES = {"recent": 3, "bought": 5, "items": 7}  # lengths, all different, lest the tracer take them for equal


class SearchGraph(nn.Module):
    """Ranks items by the student's own search.

    Args:
        student: without memories; they mix lists outside of the graph.
        k: items of a list.
        width: beams; as for `Recommender.recommend`, at least k and at most the number of items are used.
        exclude_bought: exclude all items of the history; by default as in training.
        precision: of the matrix products.

    Raises:
        UserError: the student has memories, or its backbone is none of `EXPORTED`.
    """

    def __init__(
        self,
        student: Recommender,
        k: int = 10,
        width: int = 20,
        exclude_bought: bool | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
    ):
        super().__init__()
        self.precision = precision
        if student.transition_memory is not None or student.content_memory is not None:
            raise UserError("Memories are no part of the graph: export the student to which they were added.")
        check_backbone(student)
        self.model, self.ranker, self.student = student.model, student.ranker, student
        self.k, self.width = (min(value, student.n_items) for value in (k, max(k, width)))
        self.exclude_bought = student.facts["exclude_bought"] if exclude_bought is None else exclude_bought

    outputs = ("items", "scores")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs: `bought` is there where bought items are excluded."""
        return ("recent", "bought") if self.exclude_bought else ("recent",)

    def forward(self, recent: Tensor, bought: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rank items after histories.

        Args:
            recent: the last items of each history, at most the student's max_history, oldest first, padded with -1 on
                the right [users, length].
            bought: all items of each history, padded with -1 [users, any length].

        Returns:
            Item numbers, best first, and their scores, both [users, k]; -1 and −∞ where there is no further item, and
            for histories without items.
        """
        with autocast(self.student.device, self.precision):
            items, scores = self.student._search(recent, bought, self.width, self.exclude_bought, True)
        items, scores = items[:, : self.k], scores[:, : self.k]
        exists = (items >= 0) & (recent[:, :1] >= 0)
        return torch.where(exists, items, -1), scores.masked_fill(~exists, -torch.inf)


class ScoreGraph(nn.Module):
    """Scores given items by the student's networks; memories take no part.

    Args:
        student: the student.
        precision: of the matrix products.

    Raises:
        UserError: its backbone is none of `EXPORTED`.
    """

    inputs, outputs = ("recent", "items"), ("scores",)

    def __init__(self, student: Recommender, precision: Literal["float32", "bfloat16"] = "float32"):
        super().__init__()
        self.precision = precision
        check_backbone(student)
        self.model, self.ranker, self.student = student.model, student.ranker, student

    def forward(self, recent: Tensor, items: Tensor) -> Tensor:
        """Compute log-probabilities of items.

        Args:
            recent: as for `SearchGraph`.
            items: item numbers, -1 for any [users, any length].

        Returns:
            As `items`.
        """
        with autocast(self.student.device, self.precision):
            return self.student._scores(recent, items)


def check_backbone(student: Recommender) -> None:
    """Refuse a student whose network cannot be captured.

    Raises:
        UserError: names those that can.
    """
    if student.facts["backbone"] not in EXPORTED:
        raise UserError(f"Backbone {student.facts['backbone']} cannot be exported; {', '.join(EXPORTED)} can.")


@torch.no_grad()
def capture(graph: SearchGraph | ScoreGraph, batch: int | None = None) -> ExportedProgram:
    """Capture a graph by `torch.export`; lengths are dynamic.

    Args:
        graph: search or scores.
        batch: users of every call; None: any number.
    """
    examples = tuple(torch.zeros(batch or 2, EXAMPLES[name], dtype=torch.long) for name in graph.inputs)
    sizes = {1: Dim.DYNAMIC} if batch else {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    return torch.export.export(graph.eval(), examples, dynamic_shapes=dict.fromkeys(graph.inputs, sizes))
