"""Settings of E4SRec (`--network e4srec`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse.typing import NonNegativeInt

from distill.runtime.config import IF_CHANGED
from distill.runtime.errors import UserError


@dataclass(frozen=True)
class E4SRecSettings:
    """How E4SRec adapts its language model."""

    lora_rank: NonNegativeInt | None = None
    """base: train adapters of this rank beside the projection and the head (default: 16, the paper's); 0: all
    weights."""


@dataclass(frozen=True)
class E4SRecInputs:
    """What `--network e4srec` reads beside the other networks' settings."""

    e4srec: E4SRecSettings = field(default_factory=E4SRecSettings, metadata=IF_CHANGED)
    """Settings of e4srec."""


def check_e4srec(settings: E4SRecSettings, base: Path | None, item_text: str) -> None:
    """Refuse settings that contradict each other.

    Args:
        settings: of e4srec.
        base: the pretrained model that it starts from.
        item_text: whether texts are read.

    Raises:
        UserError: names the setting and what it may be.
    """
    if item_text != "none":
        raise UserError("--item_text is for the other networks; e4srec reads the item embeddings of --sasrec alone.")
    if base is None and settings.lora_rank is not None:
        raise UserError("--e4srec.lora_rank is for a pretrained model; give --base.")
