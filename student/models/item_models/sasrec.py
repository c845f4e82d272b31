"""SASRec: self-attention over the history (Kang and McAuley 2018), trained with full cross-entropy.

The original's sampled binary loss is what makes it look weak; with all items in the softmax it is a strong baseline
(Klenitskiy and Vasilev 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from student.models.item_models.items import ItemModel, build_items
from student.models.item_text import TextConfig


@dataclass(frozen=True)
class SASRecConfig:
    """Sizes."""

    n_items: int
    max_history: int = 20
    dim: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.3
    text: TextConfig | None = None


class SASRec(ItemModel):
    """A causal transformer over item embeddings; the same embeddings score the items."""

    def __init__(self, config: SASRecConfig):
        super().__init__()
        self.config = config
        self.items = build_items(config.n_items, config.dim, config.text)
        self.positions = nn.Embedding(config.max_history, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        for table in (*self.items.parameters(), self.positions.weight):
            nn.init.normal_(table, std=0.02)

    def encode(self, histories: Tensor) -> Tensor:
        """Compute the states after each prefix [users, length, dim].

        Padding is on the right, so causal attention does not see it.
        """
        places = torch.arange(histories.shape[1], device=histories.device)
        hidden = self.dropout(self.items(histories) + self.positions(places))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)


class Layer(nn.Module):
    """Causal attention, then a feed-forward network; layer norm before each."""

    def __init__(self, config: SASRecConfig):
        super().__init__()
        self.heads, self.rate = config.heads, config.dropout
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in range(2))
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.feed = nn.Sequential(
            nn.Linear(config.dim, 4 * config.dim), nn.GELU(), nn.Linear(4 * config.dim, config.dim)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform hidden states [users, length, dim]."""
        heads = self.qkv(self.norms[0](hidden)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        rate = self.rate if self.training else 0.0
        attended = functional.scaled_dot_product_attention(*heads, dropout_p=rate, is_causal=True)
        hidden = hidden + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return hidden + self.dropout(self.feed(self.norms[1](hidden)))
