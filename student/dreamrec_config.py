"""Settings of DreamRec (`--network dreamrec`): its diffusion."""

from __future__ import annotations

from dataclasses import dataclass, field

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveInt

from distill.runtime.config import IF_CHANGED
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class DreamRecSettings:
    """Diffusion and guidance (docs/students.md)."""

    steps: PositiveInt = 500
    """T, steps of the diffusion (paper: 500 to 2,000); ranking runs all of them."""
    guidance: NonNegativeFloat = 2.0
    """w, strength of the guidance by the history (paper: 2 or 4); 0: none beyond the conditional prediction."""
    unguided: ClosedUnitInterval = 0.1
    """p, share of the examples that are trained without their history (paper: 0.1)."""


@dataclass(frozen=True)
class DreamRecInputs:
    """What `--network dreamrec` reads beside the other networks' settings."""

    dreamrec: DreamRecSettings = field(default_factory=DreamRecSettings, metadata=IF_CHANGED)
    """Settings of dreamrec."""


def check_dreamrec(loss: str, item_text: str) -> None:
    """Refuse settings that DreamRec does not read.

    Args:
        loss: of a network over items.
        item_text: whether texts are read.

    Raises:
        UserError: names the setting and what it may be.
    """
    if loss != "ce":
        raise UserError(f"--loss {loss} compares items; dreamrec has a loss of its own, without other items: leave it.")
    if item_text != "none":
        raise UserError(f"--item_text {item_text} is for the other networks; dreamrec generates learned embeddings.")
