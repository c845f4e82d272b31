"""The `nested` student: an outer decoder over the user's items, an inner one over the next item's codewords.

After RQ-Transformer (Lee et al., 2022). The outer decoder reads an item as one token, the sum of its codewords'
embeddings, so that a history of 20 items is 20 tokens instead of `causal`'s 80. Its state after an item is the first
token of the inner decoder, which is a `causal` network; the codewords of the next item follow. Beams and candidates
therefore attend to that one token only, not to the user's items. The text of an item (`text`) is added to its token, or
replaces the sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from student.models.causal import Causal, CausalConfig, EncodedHistory, Positions
from student.models.layers import (
    SelfAttentionLayer,
    candidate_log_probs,
    forced_log_probs,
    history_tokens,
    initialise,
    prefix_tokens,
)

PRESETS: dict[str, dict[str, int]] = {  # parameters as in seq2seq's preset of the same name
    "demo": {"d_model": 64, "d_ff": 256, "heads": 4, "d_head": 16, "outer": 4, "layers": 1},
    "small": {"d_model": 128, "d_ff": 512, "heads": 4, "d_head": 32, "outer": 4, "layers": 1},
    "tiger-4m": {"d_model": 192, "d_ff": 1024, "heads": 6, "d_head": 64, "outer": 5, "layers": 1},
    "lohrec-13m": {"d_model": 384, "d_ff": 1024, "heads": 6, "d_head": 64, "outer": 8, "layers": 1},
}


@dataclass(frozen=True)
class NestedConfig(CausalConfig):
    """Sizes of the network; `layers` are the inner decoder's."""

    layers: int = 1
    outer: int = 4


class Nested(Causal):
    """The interface and the inner decoder are `Causal`'s."""

    def __init__(self, config: NestedConfig):
        super().__init__(config)
        c = config
        self.outer = nn.ModuleList(SelfAttentionLayer(c) for _ in range(c.outer))
        self.outer_bias = nn.Embedding(c.buckets, c.heads)
        self.outer_norm = nn.RMSNorm(c.d_model, eps=1e-6)
        initialise(self, c.d_model, c.d_ff, c.heads, c.d_head, c.tied)

    def item_states(self, codes: Tensor) -> Tensor:
        """Run the outer decoder: states after each item of [batch, items, levels], [batch, items, d_model]."""
        x = self.dropout(self.embed_items(codes))
        bias = self.causal_bias(codes.shape[1], self.outer_bias)
        for layer in self.outer:
            x, _, _ = layer(x, bias)
        return self.outer_norm(x)

    def embed_items(self, codes: Tensor) -> Tensor:
        """Embed items [batch, items, levels] as the outer decoder reads them [batch, items, d_model]."""
        if self.text is not None and self.text.only:
            return self.text(codes)
        tokens = history_tokens(codes, self.config.codebook_size).unflatten(1, codes.shape[1:])
        embedded = self.embed(tokens).sum(2)
        return embedded if self.text is None else embedded + self.text(codes)

    def decode(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """As `Causal.decode`; with tied tables the outer decoder's state itself predicts the first codeword.

        So an item of one codeword is scored as SASRec scores it.
        """
        states, keys, values = super().decode(x)
        if self.config.tied:
            states[-1] = torch.cat([x[:, :1], states[-1][:, 1:]], dim=1)
        return states, keys, values

    def start_inner(self, states: Tensor) -> EncodedHistory:
        """Run the inner decoder over its first token, the outer decoder's state [batch, d_model]."""
        after, keys, values = self.decode(states[:, None])
        *inner, last_state = (each[:, 0] for each in after)
        users = states.shape[0]
        lengths = torch.ones(users, device=states.device, dtype=torch.long)
        return EncodedHistory(keys, values, states.new_zeros(users, 1, 1, 1), lengths, last_state, inner)

    def encode(self, codes: Tensor) -> EncodedHistory:
        """Encode histories [batch, items, levels]; each becomes one token of the inner decoder."""
        last = ((codes[..., 0] >= 0).sum(1) - 1).clamp(min=0)
        return self.start_inner(self.item_states(codes)[torch.arange(codes.shape[0], device=codes.device), last])

    def one_pass(
        self, sequences: Tensor, items: Tensor | None, positions: Positions, scope: str = "level"
    ) -> tuple[Tensor, Tensor | None]:
        """As `Causal.one_pass`."""
        rows, places, candidate_places, allowed = positions
        states = self.item_states(sequences)
        targets = self.embed(prefix_tokens(sequences[rows, places], self.config.codebook_size))
        target_states, _, _ = self.decode(torch.cat([states[rows, places - 1][:, None], targets], dim=1))
        self.guess_features(target_states)
        target_log_probs = forced_log_probs(target_states[-1][:, None], self.output_table(), scope)[:, 0]
        if items is None:
            return target_log_probs, None
        row = torch.arange(len(states), device=states.device)[:, None]
        encoded = self.start_inner(states[row, candidate_places.clamp(min=1) - 1].flatten(0, 1))  # a row for each group
        items = items.flatten(0, 1)
        after = self.continue_history(items[:, None], encoded.keys, encoded.values, encoded.lengths[:, None])[-1][:, 0]
        allowed = None if allowed is None else allowed.flatten(0, 1)
        candidates = candidate_log_probs(encoded.last_state, after, self.output_table(), items, scope, allowed)
        return target_log_probs, candidates.unflatten(0, candidate_places.shape)
