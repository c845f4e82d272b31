"""Item embeddings, which also score the items, or have a head beside them that does."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from student.models.item_text import ProjectedText, TextConfig


class ItemEmbedding(nn.Embedding):
    """A row per item; scores are products with the same rows (tied weights).

    Both uses are one module's forward pass, so that an engine that keeps weights in pieces gathers them for both.
    """

    def forward(self, items: Tensor | None, states: Tensor | None = None) -> Tensor:
        """Embed items, or score all items.

        Args:
            items: item numbers, -1 for padding [...]; None: score.
            states: what is scored [n, dim].

        Returns:
            Embeddings [..., dim], times √dim; or log-probabilities of all items [n, n_items].
        """
        if states is None:
            return super().forward(items.clamp(min=0)) * self.embedding_dim**0.5
        return functional.linear(states, self.weight).float().log_softmax(-1)


class TextItemEmbedding(nn.Module):
    """The interface of `ItemEmbedding`; a row is the projected text of an item, plus a learned row unless `text.only`.

    Scores read the same rows, so items that no training sequence holds are recommended by their texts.

    Args:
        n_items: rows.
        dim: of the network.
        text: sizes of the text embeddings.
    """

    def __init__(self, n_items: int, dim: int, text: TextConfig):
        super().__init__()
        self.text, self.dim = ProjectedText(text, dim), dim
        self.learned = None if text.only else nn.Parameter(torch.empty(n_items, dim))

    @property
    def weight(self) -> Tensor:
        """The rows of all items [n_items, dim]."""
        rows = self.text(torch.arange(len(self.text.vectors), device=self.text.vectors.device))
        return rows if self.learned is None else rows + self.learned

    def forward(self, items: Tensor | None, states: Tensor | None = None) -> Tensor:
        """As `ItemEmbedding.forward`."""
        if states is not None:
            return functional.linear(states, self.weight).float().log_softmax(-1)
        rows = self.text(items.clamp(min=0))
        if self.learned is not None:
            rows = rows + functional.embedding(items.clamp(min=0), self.learned)
        return rows * self.dim**0.5


def build_items(n_items: int, dim: int, text: TextConfig | None) -> ItemEmbedding | TextItemEmbedding:
    """Build the embedding of all items, with texts or without."""
    return TextItemEmbedding(n_items, dim, text) if text else ItemEmbedding(n_items, dim)


class FrozenItems(nn.Module):
    """The interface of `ItemEmbedding`: frozen vectors are read, and a trained row for each item scores it.

    Args:
        n_items: rows.
        source_dim: of the frozen vectors.
        hidden: of the states that are scored.
    """

    weight: Tensor

    def __init__(self, n_items: int, source_dim: int, hidden: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(n_items, source_dim))
        self.head = nn.Linear(hidden, n_items, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, items: Tensor | None, states: Tensor | None = None) -> Tensor:
        """Look up the vectors of items [...], -1 for padding → [..., source_dim]; or score all items.

        Args:
            items: item numbers; None: score.
            states: what is scored [n, hidden].

        Returns:
            Vectors, or log-probabilities of all items [n, n_items].
        """
        if states is None:
            assert items is not None
            return functional.embedding(items.clamp(min=0), self.weight)
        return self.head(states).float().log_softmax(-1)


class ItemModel(nn.Module):
    """A network whose state at each place predicts the next item.

    Subclasses set `items` and `config`, and define `encode`.
    """

    items: ItemEmbedding | TextItemEmbedding | FrozenItems

    def encode(self, histories: Tensor) -> Tensor:
        """Compute the states after each prefix [users, length, dim]; see `forward`."""
        raise NotImplementedError

    def forward(self, histories: Tensor, places: Tensor | None = None) -> Tensor:
        """Predict the next item.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            places: True where the next item is scored [users, length]; None: return the states.

        Returns:
            Log-probabilities of all items at these places [n, n_items], or states [users, length, dim]. States of
            padding mean nothing.
        """
        states = self.encode(histories)
        return states if places is None else self.items(None, states[places])
