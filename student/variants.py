"""The variants of the paper as data: which loss, on which labels, and who ranks (method: paper 3.1 to 3.3, Table 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill.artifacts import UserError
from distill.config import suggest


@dataclass(frozen=True)
class Loss:
    """One training stage: a generative loss, a ranking loss, or their sum (equation 16)."""

    generative: Literal["nll", "smooth", "distill"] | None
    rank: bool = False

    @property
    def needs_labels(self) -> bool:
        return self.rank or self.generative == "distill"


@dataclass(frozen=True)
class Variant:
    """What is trained.

    Attributes:
        retriever: the loss of the model whose beams are recommended.
        ranker: the loss of a second model that re-scores those beams, if there is one.
    """

    retriever: Loss
    ranker: Loss | None = None

    @property
    def needs_labels(self) -> bool:
        return self.retriever.needs_labels or (self.ranker is not None and self.ranker.needs_labels)


VARIANTS: dict[str, Variant] = {
    "tiger": Variant(Loss("nll")),
    "smooth": Variant(Loss("smooth")),
    "distill": Variant(Loss("distill")),
    "dtr": Variant(Loss("distill"), ranker=Loss(None, rank=True)),
    "dwr": Variant(Loss("distill", rank=True)),
}


def find(name: str) -> Variant:
    """The variant of that name.

    Raises:
        UserError: there is none; the nearest is suggested.
    """
    if name not in VARIANTS:
        raise UserError(f"Unknown variant {name!r}. {suggest(name, list(VARIANTS))}")
    return VARIANTS[name]
