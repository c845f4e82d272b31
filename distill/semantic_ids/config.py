"""Settings of embeddings and semantic IDs, in groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from distill.data.dataset import TEXT_FIELDS, TextField
from distill.runtime.config import IF_CHANGED, HalfOpenUnitInterval, Seed
from distill.runtime.errors import UserError
from distill.semantic_ids.quantisers.settings import KMeansConfig, LetterConfig, RQVAEConfig, SpectralConfig

NUMBERINGS = ("sid", "rid", "iid", "cid", "semid")  # IDs that need no embeddings


@dataclass(frozen=True)
class TextSettings:
    """How texts become vectors."""

    embedder: Literal["tfidf", "minilm", "sentence", "hf"] = "tfidf"
    """tfidf (offline, seconds), minilm (a small model, offline: all-MiniLM-L6-v2), sentence (a sentence-transformers
    model) or hf (any model of transformers, hidden states averaged, as in the paper)."""
    model: str | None = None
    """sentence, hf: folder or hub name of the model."""
    dim: PositiveInt = 128
    """tfidf: size of an embedding, at most what the texts allow."""
    min_df: PositiveInt = 2
    """tfidf: leave out words and pairs of words that fewer items have."""
    max_terms: PositiveInt = 200_000
    """tfidf: use at most this many words and pairs, the most frequent."""
    max_tokens: PositiveInt = 512
    """hf: cut longer texts to this many tokens."""
    batch_size: PositiveInt = field(default=16, metadata={"identity": False})
    """Models: items per step."""
    shard_rows: PositiveInt = 2048
    """Models: items per shard; a killed command repeats at most one shard per process."""
    fields: list[TextField] = field(default_factory=lambda: list(TEXT_FIELDS), metadata=IF_CHANGED)
    """What of an item's text is embedded, in this order: title, brand, categories, description (paper: title and
    description)."""
    empty_text: Literal["error", "keep"] = "error"
    """Items without text: stop, or give them the mean embedding."""
    seed: Seed = 0
    """Seed of the truncated SVDs."""


@dataclass(frozen=True)
class CollaborativeSettings:
    """How co-occurrence, or a network's item embeddings, joins the texts."""

    collaborative: Literal["none", "concat", "average"] = "none"
    """Join co-occurrence in the training part (or --item_model): not, as further dimensions, or rotated towards the
    text and added. docs/semantic-ids.md says when it pays."""
    collaborative_weight: HalfOpenUnitInterval = 0.5
    """Share of co-occurrence (or of --item_model) in the variance."""
    collaborative_dim: PositiveInt = 64
    """Size of the co-occurrence embedding before it joins."""
    collaborative_window: PositiveInt = 20
    """Count items at most this far apart in a sequence as bought together."""


@dataclass(frozen=True)
class EmbedSettings(CollaborativeSettings, TextSettings):
    """All settings that decide the embeddings."""


@dataclass(frozen=True)
class QuantiserSettings:
    """How embeddings become codes."""

    quantiser: Literal["rqvae", "rkmeans", "pq", "sid", "rid", "iid", "cid", "semid"] = "pq"
    """rqvae (paper), rkmeans (residual k-means) or pq (product quantisation: levels without an order), which
    recommended best (docs/semantic-ids.md). Without embeddings, after Hua et al. (2023): sid (numbers in order of first
    appearance), rid (random numbers), iid (a codeword for each item), cid (P5-CID: spectral clusters of items bought
    together), semid (category paths)."""
    levels: PositiveInt = 4
    """Codewords of an item."""
    codebook_size: PositiveInt = 256
    """Codewords per level (paper: 256)."""
    sample: NonNegativeInt = 65_536
    """Train the quantiser on this many items, drawn at random if there are more; 0: on all. All are encoded."""
    rqvae: RQVAEConfig = field(default_factory=RQVAEConfig)
    """Settings of rqvae."""
    letter: LetterConfig = field(default_factory=LetterConfig, metadata=IF_CHANGED)
    """Weights of LETTER's losses beside rqvae's."""
    kmeans: KMeansConfig = field(default_factory=KMeansConfig)
    """Settings of rkmeans and pq."""
    spectral: SpectralConfig = field(default_factory=SpectralConfig, metadata=IF_CHANGED)
    """Settings of cid."""
    seed: Seed = 0
    """Seed of the training, of the sample and of random numbers."""


@dataclass(frozen=True)
class CollisionSettings:
    """What happens to items that share all codes."""

    unique: bool = True
    """Guarantee that no two items share an ID."""
    full_prefix: Literal["error", "move"] = "error"
    """If more items share all codes but the last than the last level has codes: stop, or move the surplus to the next
    nearest prefix."""
    collision_rounds: NonNegativeInt = 20
    """Rounds in which colliding items are assigned anew among themselves, as in LC-Rec, before the guarantee."""


@dataclass(frozen=True)
class IDSettings(CollisionSettings, QuantiserSettings):
    """All settings that decide semantic IDs."""


def check_embedder(settings: TextSettings) -> None:
    """Check that texts are read, and that a model is named where one is needed.

    Raises:
        UserError: no field of the texts, or no model.
    """
    if not settings.fields:
        raise UserError("--fields is empty; expected some of " + ", ".join(TEXT_FIELDS) + ".")
    if settings.embedder in ("sentence", "hf") and not settings.model:
        raise UserError(f"Embedder {settings.embedder} needs a model: name its folder or hub name with --model.")
