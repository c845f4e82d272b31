"""Settings of the memories beside a student."""

from __future__ import annotations

from dataclasses import dataclass

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveInt

from distill.baselines.counting import TransitionSettings
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class MemorySettings:
    """What is mixed in, and how its shares are chosen"""

    transitions: TransitionSettings | None = None
    """How to count; none: the best of a grid for the counter alone, on the validation split."""
    weight: ClosedUnitInterval | None = None
    """The counter's share, 0 to 1; none: the best of a grid by NDCG@10 on the validation split."""
    discount: NonNegativeFloat | None = None
    """β, the discount of items that are bought often; none: the best of a grid, with the share."""
    content: bool = False
    """Add a content memory too: the text embeddings of all items, whose similarity with the history is mixed in."""
    content_weight: ClosedUnitInterval | None = None
    """The content's share, 0 to 1; none: the best of a grid, with the counter's."""
    top: PositiveInt = 50
    """How many items of the counter, and of the content, join the beams."""
    width: PositiveInt = 20
    """Beams when the share is chosen; at least 10."""
    valid_users: PositiveInt = 3000
    """Validation examples at most when the share is chosen."""
    with_validation: bool = False
    """Once the share is chosen, count the validation part too."""


def check(settings: MemorySettings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        UserError: too few beams for NDCG@10, a share of the content without it, shares above 1 in all.
    """
    if settings.width < 10:
        raise UserError(f"width: NDCG@10 needs at least 10 beams, got {settings.width}.")
    if settings.content_weight is not None and not settings.content:
        raise UserError("content_weight has no effect without --content true.")
    shares = (settings.weight or 0.0) + (settings.content_weight or 0.0)
    if shares > 1:
        raise UserError(f"weight and content_weight add up to {shares:g}; together they may be at most 1.")
