"""The variants of the paper as data: which loss, on which labels, and who ranks (method: paper 3.1 to 3.3, Table 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from distill.runtime.config import suggest
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class Loss:
    """One training stage: a generative loss, a ranking loss, or their sum (equation 16).

    Attributes:
        generative: which, if any.
        rank: whether equation (14) is there.
        target: the item that nll and smooth teach: the real next item, or the teacher's first or any of its list.
    """

    generative: Literal["nll", "smooth", "distill"] | None
    rank: bool = False
    target: Literal["ref", "top", "random"] = "ref"

    @property
    def needs_labels(self) -> bool:
        return self.rank or self.generative == "distill" or self.target != "ref"


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

    @property
    def ranks(self) -> bool:
        return self.retriever.rank or (self.ranker is not None and self.ranker.rank)


VARIANTS: dict[str, Variant] = {
    "tiger": Variant(Loss("nll")),
    "smooth": Variant(Loss("smooth")),
    "distill": Variant(Loss("distill")),
    "dtr": Variant(Loss("distill"), ranker=Loss(None, rank=True)),
    "dwr": Variant(Loss("distill", rank=True)),
    # Table 2: without RANK dwr is distill, without both it is tiger
    "dwr-without-distill": Variant(Loss("nll", rank=True)),
}


def find(name: str, labels: str = "ref") -> Variant:
    """The variant of that name, taught by the labels of the alignment study (4.6).

    Args:
        name: a key of `VARIANTS`.
        labels: "ref", as the variant says; "top" or "random", that item of the teacher's list in the reference's place;
            "rank", the order of its list and nothing else.

    Raises:
        UserError: there is none, and the nearest is suggested; or labels that this variant cannot take.
    """
    if name not in VARIANTS:
        raise UserError(f"Unknown variant {name!r}. {suggest(name, list(VARIANTS))}")
    variant = VARIANTS[name]
    if labels == "ref":
        return variant
    if labels == "rank":
        return Variant(Loss(None, rank=True))
    if variant.ranker or variant.retriever.rank or variant.retriever.generative == "distill":
        raise UserError(
            f"--labels {labels} gives {name} another target, but its labels lie along the real one; "
            "take --variant tiger or smooth."
        )
    return Variant(replace(variant.retriever, target=labels))
