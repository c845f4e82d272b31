"""Settings of the quantisers; apart from them, so that a command can show its help without importing torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distill.runtime.errors import UserError

QUANTISERS = ("rqvae", "rkmeans", "pq")
MAX_LEVELS = 8  # one letter a level, a to h


@dataclass(frozen=True)
class RQVAEConfig:
    """Settings of the RQ-VAE. LC-Rec's are named where ours differ; docs/semantic-ids.md has them as one command."""

    hidden: list[int] = field(default_factory=lambda: [256, 128, 64])
    """Hidden sizes of the encoder; the decoder mirrors them (LC-Rec: 2048, 1024, 512, 256, 128, 64)."""
    latent_dim: int = 32
    """Size of the codewords."""
    beta: float = 0.25
    """Weight of the commitment term."""
    epochs: int = 1000
    """Passes over the items (LC-Rec: 5,000 to 10,000)."""
    warmup_epochs: int = 100
    """Epochs, of those, in which the autoencoder learns without quantisation, so that k-means starts from a latent
    space that means something; 0 starts it on the untrained encoder, as LC-Rec does."""
    batch_size: int = 1024
    """Items a step."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    sinkhorn_levels: Literal["all", "last"] = "all"
    """Levels assigned by Sinkhorn in training (LC-Rec: last). All: every level's codes are well used."""
    sinkhorn_epsilon: float = 0.003
    """Entropy of the balanced assignment; 0 switches it off."""
    sinkhorn_iterations: int = 50
    """Sinkhorn-Knopp iterations."""
    revive_every: int = 20
    """Epochs between two revivals of codewords that nothing chose; 0 switches it off."""


@dataclass(frozen=True)
class KMeansConfig:
    """Settings of residual k-means and of product quantisation."""

    iterations: int = 100
    """Lloyd iterations of plain k-means, at most."""
    balanced_rounds: int = 10
    """Lloyd iterations after that in which Sinkhorn assigns each codeword an equal share; 0: plain k-means, whose later
    levels spend most codewords on a few far items."""
    sinkhorn_epsilon: float = 0.01
    """Entropy of the balanced assignment."""
    sinkhorn_iterations: int = 50
    """Sinkhorn-Knopp iterations."""


def check(n_items: int, levels: int, codebook_size: int) -> None:
    """Refuse codes that cannot work.

    Raises:
        UserError: more items than codes, or a number out of range.
    """
    if not 1 <= levels <= MAX_LEVELS:
        raise UserError(f"levels is {levels}; it must be from 1 to {MAX_LEVELS}.")
    if not 2 <= codebook_size <= 32767:
        raise UserError(f"codebook_size is {codebook_size}; it must be from 2 to 32767.")
    codes = codebook_size**levels
    if n_items > codes:
        raise UserError(
            f"{n_items} items do not fit into {codes} codes ({levels} levels of {codebook_size}). "
            "Raise codebook_size or levels."
        )


def check_rqvae(config: RQVAEConfig) -> None:
    """Refuse settings of the RQ-VAE that cannot work.

    Raises:
        UserError: a number out of range.
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
