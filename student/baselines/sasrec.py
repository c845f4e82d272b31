"""SASRec: self-attention over the history (Kang and McAuley 2018), trained with full cross-entropy.

The original's sampled binary loss is what makes it look weak; with all items in the softmax it is hard to beat
(Klenitskiy and Vasilev 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class SASRecConfig:
    """Sizes."""

    n_items: int
    max_history: int = 20
    dim: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.3


class SASRec(nn.Module):
    """Causal transformer over item embeddings; the same embeddings score the items."""

    def __init__(self, config: SASRecConfig):
        super().__init__()
        self.config = config
        self.items = nn.Embedding(config.n_items, config.dim)
        self.positions = nn.Embedding(config.max_history, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, histories: Tensor) -> Tensor:
        """What follows each prefix.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].

        Returns:
            [users, length, dim]; places of padding mean nothing. Scores of items are products with `items.weight`.
        """
        # padding stands on the right: causal attention never shows it to an item
        hidden = self.items(histories.clamp(min=0)) * self.config.dim**0.5
        hidden = self.dropout(hidden + self.positions.weight[: histories.shape[1]])
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden)


class Layer(nn.Module):
    """Attention to what came before, then a feed-forward network; norms before both."""

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
        """[users, length, dim] → the same."""
        heads = self.qkv(self.norms[0](hidden)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        rate = self.rate if self.training else 0.0
        seen = functional.scaled_dot_product_attention(*heads, dropout_p=rate, is_causal=True)
        hidden = hidden + self.dropout(self.out(seen.transpose(1, 2).flatten(2)))
        return hidden + self.dropout(self.feed(self.norms[1](hidden)))
