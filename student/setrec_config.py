"""Settings of SETRec (`--network setrec`): its tokens, its language model, its loss and its score."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt

from distill.runtime.config import IF_CHANGED
from distill.runtime.errors import UserError

HEADS = 4  # of a language model that starts from random weights


@dataclass(frozen=True)
class SETRecSettings:
    """Tokens, language model, loss and score (docs/setrec.md)."""

    trunk: Literal["t5", "causal"] = "t5"
    """Language model: T5, or a decoder alone."""
    semantic: NonNegativeInt = 4
    """N, semantic tokens of an item (paper: 4 with T5, 6 with Qwen); 0: none."""
    cf: bool = True
    """Whether an item has a CF token, from SASRec's embeddings."""
    hidden: list[PositiveInt] = field(default_factory=lambda: [512, 256, 128])
    """Hidden sizes of the texts' encoder; the decoder mirrors them."""
    alpha: NonNegativeFloat = 0.7
    """α, weight of the autoencoder's loss (paper: 0.7 with T5, 0.5 with Qwen)."""
    beta: ClosedUnitInterval | None = None
    """β, weight of the semantic tokens in an item's score (default: 0.5 while training, then the best of 0, 0.1 … 1 by
    validation NDCG@10)."""
    mask: Literal["sparse", "full"] = "sparse"
    """sparse: the tokens of an item do not see each other; full: they do."""
    recency: bool = field(default=True, metadata=IF_CHANGED)
    """t5: add a learnt vector to each item by its place from the end of the history, zero at first (the paper does
    not)."""
    frozen_queries: bool = False
    """Leave the queries as they were drawn (an ablation of the paper)."""
    lora_rank: NonNegativeInt = 0
    """base: train adapters of this rank beside tokens and queries; 0: all weights."""
    instruction: str = ""
    """base: words that the language model reads before the history."""


@dataclass(frozen=True)
class SETRecInputs:
    """What `--network setrec` reads, and other networks in part."""

    sasrec: Path | None = None
    """setrec, e4srec: network over items whose embeddings are read (setrec: by the CF tokens; default:
    RUN/baselines/sasrec). dreamrec: network whose embeddings are generated, frozen (default: none, they are
    learned)."""
    base: Path | None = None
    """setrec, lite-llm4rec, e4srec: start from this Hugging Face checkpoint, a causal model, or a T5 (setrec); without
    it from random weights."""
    setrec: SETRecSettings = field(default_factory=SETRecSettings, metadata=IF_CHANGED)
    """Settings of setrec."""


def check_setrec(inputs: SETRecInputs, dim: int, item_text: str) -> None:
    """Refuse settings that contradict each other.

    Args:
        inputs: of the command.
        dim: of a network that starts from random weights.
        item_text: the setting of the other networks.

    Raises:
        UserError: names the setting and what it may be.
    """
    settings = inputs.setrec
    if item_text != "none":
        raise UserError("--item_text is for the other networks; setrec always reads texts, as semantic tokens.")
    if not settings.cf and not settings.semantic:
        raise UserError("An item needs a token: take --setrec.cf true, or --setrec.semantic of at least 1.")
    if not settings.cf and inputs.sasrec:
        raise UserError(f"--sasrec {inputs.sasrec} is read for the CF token, and --setrec.cf is false.")
    if not inputs.base and (settings.lora_rank or settings.instruction):
        raise UserError("--setrec.lora_rank and --setrec.instruction are for a pretrained model; give --base.")
    if not inputs.base and dim % HEADS:
        raise UserError(f"--dim is {dim}; expected a multiple of {HEADS}, for {HEADS} attention heads.")
