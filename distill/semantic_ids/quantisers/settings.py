"""Settings of the quantisers, in a module without torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from distill.runtime.errors import UserError
from distill.semantic_ids.ids import MAX_CODEBOOK

MAX_LEVELS = 8  # one letter a level, a to h


@dataclass(frozen=True)
class RQVAEConfig:
    """Settings of the RQ-VAE. LC-Rec's are named where ours differ; docs/semantic-ids.md has them as one command."""

    hidden: list[PositiveInt] = field(default_factory=lambda: [256, 128, 64])
    """Hidden sizes of the encoder; the decoder mirrors them (LC-Rec: 2048, 1024, 512, 256, 128, 64)."""
    latent_dim: PositiveInt = 32
    """Size of the codewords."""
    beta: NonNegativeFloat = 0.25
    """Weight of the commitment term."""
    epochs: PositiveInt = 1000
    """Passes over the items (LC-Rec: 5,000 to 10,000)."""
    warmup_epochs: NonNegativeInt = 100
    """First epochs, in which the autoencoder learns without quantisation, so that k-means starts from a trained latent
    space; 0 starts it on the untrained encoder, as LC-Rec does."""
    batch_size: PositiveInt = 1024
    """Items per step."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of AdamW."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay of AdamW."""
    gradient_clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    sinkhorn_levels: Literal["all", "last"] = "all"
    """Levels assigned by Sinkhorn in training (LC-Rec: last). all keeps the codes of every level in use."""
    sinkhorn_epsilon: NonNegativeFloat = 0.003
    """Entropy weight of the balanced assignment; 0 switches it off."""
    sinkhorn_iterations: PositiveInt = 50
    """Sinkhorn-Knopp iterations."""
    revive_every: NonNegativeInt = 20
    """Epochs between two revivals of unused codewords; 0 switches them off."""


@dataclass(frozen=True)
class LetterConfig:
    """LETTER's losses beside the RQ-VAE's; its values are collaborative 0.02, diversity 0.0001."""

    collaborative: NonNegativeFloat = 0.0
    """Weight of the collaborative loss: the sum of an item's codewords learns to tell the item's embedding by
    interactions from those of other items; 0: none."""
    diversity: NonNegativeFloat = 0.0
    """Weight of the diversity loss, which spreads codewords over clusters of equal size; 0: none."""
    clusters: PositiveInt = 10
    """Clusters of a level's codewords."""


@dataclass(frozen=True)
class KMeansConfig:
    """Settings of residual k-means and of product quantisation."""

    iterations: PositiveInt = 100
    """Lloyd iterations of plain k-means, at most."""
    balanced_rounds: NonNegativeInt = 10
    """Further Lloyd iterations in which Sinkhorn assigns each codeword an equal share; 0: plain k-means, whose later
    levels spend most codewords on a few outliers."""
    sinkhorn_epsilon: PositiveFloat = 0.01
    """Entropy weight of the balanced assignment."""
    sinkhorn_iterations: PositiveInt = 50
    """Sinkhorn-Knopp iterations."""


@dataclass(frozen=True)
class SpectralConfig:
    """Settings of collaborative IDs."""

    clusters: PositiveInt = 20
    """Divide a cluster into so many (the paper's N)."""
    leaf: NonNegativeInt = 0
    """Divide clusters of more items than this (the paper's k); 0: codebook_size."""


def check(n_items: int, levels: int, codebook_size: int) -> None:
    """Check the numbers of levels and codewords.

    Raises:
        UserError: more items than codes, or a number out of range.
    """
    if not 1 <= levels <= MAX_LEVELS:
        raise UserError(f"levels is {levels}; it must be from 1 to {MAX_LEVELS}.")
    if not 2 <= codebook_size <= MAX_CODEBOOK:
        raise UserError(f"codebook_size is {codebook_size}; it must be from 2 to {MAX_CODEBOOK}.")
    codes = codebook_size**levels
    if n_items > codes:
        raise UserError(
            f"{n_items} items do not fit into {codes} codes ({levels} levels of {codebook_size}). "
            "Raise codebook_size or levels."
        )


def check_rqvae(config: RQVAEConfig) -> None:
    """Check settings of the RQ-VAE that were not parsed from a command line.

    Raises:
        UserError: a number out of range, or more warm-up epochs than epochs.
    """
    for name in ("epochs", "batch_size", "latent_dim", "sinkhorn_iterations"):
        if getattr(config, name) < 1:
            raise UserError(f"rqvae.{name} is {getattr(config, name)}; it must be at least 1.")
    if config.warmup_epochs >= config.epochs:
        raise UserError(
            f"rqvae.warmup_epochs ({config.warmup_epochs}) must be fewer than rqvae.epochs ({config.epochs})."
        )
    if any(size < 1 for size in config.hidden):
        raise UserError(f"rqvae.hidden is {config.hidden}; every size must be at least 1.")
