"""Item embeddings that also score the items."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


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


class ItemModel(nn.Module):
    """A network whose state at each place predicts the next item.

    Subclasses set `items` (an `ItemEmbedding`) and `config`, and define `encode`.
    """

    items: ItemEmbedding

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
