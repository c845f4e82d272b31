"""The tokens of the items: one collaborative (CF) token and N semantic ones, a set without an order (SETRec, 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class SetTokens(nn.Module):
    """Compute the tokens of all items from frozen item embeddings and frozen texts.

    The CF token is W·E_v + b, where E are a trained SASRec's item embeddings. The semantic tokens are the N parts of an
    autoencoder's code of the item's text.

    Args:
        n_items: of the catalogue.
        dim: d, of a token.
        cf_dim: of E; 0: no CF token.
        text_dim: of a text embedding.
        semantic: N; 0: no semantic tokens.
        hidden: sizes of the encoder's hidden layers; the decoder mirrors them (paper: 512, 256, 128).
    """

    item_embeddings: Tensor
    texts: Tensor

    def __init__(self, n_items: int, dim: int, cf_dim: int, text_dim: int, semantic: int, hidden: Sequence[int]):
        super().__init__()
        self.n_items, self.dim, self.semantic, self.has_cf = n_items, dim, semantic, cf_dim > 0
        if self.has_cf:
            self.register_buffer("item_embeddings", torch.zeros(n_items, cf_dim))
            self.project = nn.Linear(cf_dim, dim)
        if semantic:
            sizes = [text_dim, *hidden, semantic * dim]
            self.register_buffer("texts", torch.zeros(n_items, text_dim))
            self.encoder, self.decoder = mlp(sizes), mlp(sizes[::-1])

    def set_inputs(self, item_embeddings: Tensor | None, texts: Tensor | None) -> None:
        """Take over the frozen inputs, each scaled to a mean square of 1.

        Args:
            item_embeddings: of a trained network [n_items, cf_dim].
            texts: centred embeddings of the items' texts [n_items, text_dim].
        """
        if item_embeddings is not None:
            self.item_embeddings.copy_(to_mean_square_1(item_embeddings))
        if texts is not None:
            self.texts.copy_(to_mean_square_1(texts))

    def forward(self) -> Tensor:
        """Compute the tokens of all items, the CF token first [n_items, K, dim]."""
        parts = []
        if self.has_cf:
            parts.append(self.project(self.item_embeddings)[:, None])
        if self.semantic:
            parts.append(self.encoder(self.texts).unflatten(1, (self.semantic, self.dim)))
        return torch.cat(parts, dim=1)

    def reconstruction_errors(self, tokens: Tensor, items: Tensor) -> Tensor:
        """Compute the mean squared error of the autoencoder for some items, the term of each item in L_AE.

        Args:
            tokens: of all items, as `forward` returned them [n_items, K, dim].
            items: item numbers [n].

        Returns:
            [n]; zeros without semantic tokens.
        """
        if not self.semantic:
            return torch.zeros(len(items), device=items.device)
        codes = tokens[items, int(self.has_cf) :].flatten(1)
        return (self.texts[items] - self.decoder(codes)).square().mean(1)


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Build linear layers with ReLU between, of Xavier's initial weights."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def to_mean_square_1(values: Tensor) -> Tensor:
    """Scale a table by one number, so that its mean square is 1: the sources' units must not decide L_AE's size."""
    return values / values.square().mean().sqrt().clamp(min=1e-12)
