"""GRU4Rec: a recurrent network over the history (Hidasi et al. 2016), trained with full cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from student.models.item_models.items import ItemModel, build_items
from student.models.item_text import TextConfig


@dataclass(frozen=True)
class GRUConfig:
    """Sizes."""

    n_items: int
    max_history: int = 20
    dim: int = 64
    layers: int = 1
    dropout: float = 0.3
    text: TextConfig | None = None


class GRU4Rec(ItemModel):
    """A GRU over item embeddings; the same embeddings score the items."""

    def __init__(self, config: GRUConfig):
        super().__init__()
        self.config = config
        self.items = build_items(config.n_items, config.dim, config.text)
        self.gru = nn.GRU(config.dim, config.dim, config.layers, batch_first=True)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        for table in self.items.parameters():
            nn.init.normal_(table, std=0.02)

    def encode(self, histories: Tensor) -> Tensor:
        """Compute the states after each prefix [users, length, dim].

        Padding is on the right, so no state of an item has read it.
        """
        states, _ = self.gru(self.dropout(self.items(histories)))
        return self.norm(self.dropout(states))
