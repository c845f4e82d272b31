"""The variants of the paper as data: which loss, on which labels, in which phases (paper 3.1 to 3.3, Table 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from distill.runtime.config import suggest
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class Loss:
    """The loss of one training phase: a generative loss, a ranking loss, or their sum (equation 16).

    Attributes:
        generative: equation (8), (9) or (11), if any.
        rank: whether the ranking loss, equation (14), is part of it.
        target: the item that nll and smooth learn: the real next item, the teacher's first, or any item of its list.
        pseudo: whether the ranking loss orders pseudo-IDs around the target, which need no labels (Appendix B, 18).
        own_beams: whether it ranks the model's own beams, rewarded by the real next item, which need none either.
    """

    generative: Literal["nll", "smooth", "distill"] | None
    rank: bool = False
    target: Literal["ref", "top", "random"] = "ref"
    pseudo: bool = False
    own_beams: bool = False

    @property
    def ranks_labels(self) -> bool:
        """Whether it ranks candidates of the labels."""
        return self.rank and not self.pseudo and not self.own_beams

    @property
    def needs_labels(self) -> bool:
        return self.ranks_labels or self.generative_needs_labels

    @property
    def generative_needs_labels(self) -> bool:
        """Whether the generative loss learns from the teacher; if not, the teacher does not weight it either."""
        return self.generative == "distill" or self.target != "ref"


@dataclass(frozen=True)
class Variant:
    """The phases of a training.

    Attributes:
        retriever: the loss of the model whose beams are recommended.
        ranker: the loss of a second model that re-scores those beams, if there is one.
    """

    retriever: Loss
    ranker: Loss | None = None

    @property
    def phases(self) -> dict[str, Loss]:
        """Losses by phase, in the order of training."""
        return {"retriever": self.retriever} | ({"ranker": self.ranker} if self.ranker else {})

    @property
    def needs_labels(self) -> bool:
        return any(loss.needs_labels for loss in self.phases.values())

    @property
    def ranks(self) -> bool:
        return any(loss.rank for loss in self.phases.values())

    def on_own_beams(self) -> Variant:
        """Return the variant whose ranker learns from its own beams."""
        return replace(self, ranker=replace(self.ranker, own_beams=True) if self.ranker else None)

    def on_pseudo_ids(self) -> Variant:
        """Return the variant with pseudo-IDs as the candidates of its ranking losses."""
        ranker = replace(self.ranker, pseudo=self.ranker.rank) if self.ranker else None
        return Variant(replace(self.retriever, pseudo=self.retriever.rank), ranker)


VARIANTS: dict[str, Variant] = {
    "tiger": Variant(Loss("nll")),
    "smooth": Variant(Loss("smooth")),
    "distill": Variant(Loss("distill")),
    "dtr": Variant(Loss("distill"), ranker=Loss(None, rank=True)),
    "dwr": Variant(Loss("distill", rank=True)),
    # the same two on equation (9), which the paper names as an alternative (3.2); Table 1 has (11)
    "dtr-smooth": Variant(Loss("smooth"), ranker=Loss(None, rank=True)),
    "dwr-smooth": Variant(Loss("smooth", rank=True)),
    # Table 2: without RANK dwr is distill, without both it is tiger
    "dwr-without-distill": Variant(Loss("nll", rank=True)),
}


def find(name: str, labels: Literal["ref", "top", "random", "rank"] = "ref") -> Variant:
    """Find a variant by name, with the targets of the alignment study (4.6).

    Args:
        name: a key of `VARIANTS`.
        labels: "ref", the real next item; "top" or "random", that item of the teacher's list in its place; "rank", the
            order of the teacher's list and nothing else.

    Raises:
        UserError: an unknown variant, with the nearest name; or labels that this variant cannot take.
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
            f"--labels {labels} gives {name} another target, but its labels are of the real next item's codewords; "
            "take --variant tiger or smooth."
        )
    return Variant(replace(variant.retriever, target=labels))
