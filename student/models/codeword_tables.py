"""The tables of a network over codewords: embeddings of those that it reads, and weights that score the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TIED_STD = 0.05  # of tied embeddings at the start; chosen on Scientific's validation users (docs/results/lab-log.md)


class CodewordTables(nn.Module):
    """A network with a row of embeddings for each codeword of each level, and one for padding.

    Codewords are scored by a table of their own, as in T5 without tied weights, or by the embeddings (`tied`). Tied
    embeddings start small, and are multiplied by √d where they are read, as in the Transformer (Vaswani et al., 2017)
    and SASRec: a codeword that is seen rarely is then scored by what its reading has taught.
    """

    embedding: nn.Embedding
    head: nn.Parameter | None
    input_scale: float

    def add_tables(self, levels: int, codebook_size: int, d_model: int, tied: bool) -> None:
        """Add the tables, not yet initialised."""
        self.embedding = nn.Embedding(1 + levels * codebook_size, d_model)
        self.register_parameter("head", None if tied else nn.Parameter(torch.empty(levels, codebook_size, d_model)))
        self.input_scale, self._shape = d_model**0.5 if tied else 1.0, (levels, codebook_size)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embed tokens, 0 for padding: [...] → [..., d_model]."""
        embedded = self.embedding(tokens)
        return embedded if self.head is not None else embedded * self.input_scale

    def output_table(self) -> Tensor:
        """Return the weights that score codewords [levels, codebook_size, d_model]."""
        return self.embedding.weight[1:].unflatten(0, self._shape) if self.head is None else self.head
