"""Two decoders, one inside the other: an outer one over the user's items, an inner one over an item's codewords.

After RQ-Transformer (Lee et al., 2022). The outer one reads an item as one token, the sum of its codewords' embeddings,
so a history costs a fourth of what `causal` pays for it. The state after an item is the inner one's first token; the
codewords of the next item follow it. To the inner one, which is `causal` itself, a history is that one token: beams
and candidates never look back at the user's items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from student.models.causal import Causal, CausalConfig, EncodedHistory, Positions
from student.models.layers import (
    EncoderLayer,
    among_all,
    chosen_log_probs,
    forced_log_probs,
    history_tokens,
    initialise,
    level_log_probs,
)

PRESETS: dict[str, dict[str, int]] = {  # as many parameters as seq2seq's of the same name
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
        self.outer = nn.ModuleList(EncoderLayer(c) for _ in range(c.outer))
        self.outer_bias = nn.Embedding(c.buckets, c.heads)
        self.outer_norm = nn.RMSNorm(c.d_model, eps=1e-6)
        initialise(self, c.d_model, c.d_ff, c.heads, c.d_head)

    def one_pass(
        self, sequences: Tensor, items: Tensor | None, at: Positions, scope: str = "level"
    ) -> tuple[Tensor, Tensor | None]:
        """As `Causal.one_pass`."""
        states = self.states(sequences)
        targets = self.embedding(among_all(sequences[at.rows, at.places, :-1], self.config.codebook_size) + 1)
        own, _, _ = self.read(torch.cat([states[at.rows, at.places - 1][:, None], targets], dim=1))
        own = forced_log_probs(own[:, None], self.head, scope)[:, 0]
        if items is None:
            return own, None
        row = torch.arange(len(states), device=states.device)[:, None]
        before = states[row, at.groups.clamp(min=1) - 1].flatten(0, 1)  # [batch · groups, d_model]
        memory, items = self.begin(before), items.flatten(0, 1)
        heads = level_log_probs(memory.state, self.head, 0, scope).gather(-1, items[..., 0])
        inner = self.attach(items[:, None], memory.keys, memory.values, memory.lengths[:, None])[:, 0]
        rest = chosen_log_probs(inner, self.head, items[..., 1:], scope)
        return own, torch.cat([heads[..., None], rest], dim=-1).unflatten(0, at.groups.shape)

    def encode(self, codes: Tensor) -> EncodedHistory:
        """Read histories; what is kept of each is one token."""
        last = ((codes[..., 0] >= 0).sum(1) - 1).clamp(min=0)
        return self.begin(self.states(codes)[torch.arange(len(codes), device=codes.device), last])

    def states(self, codes: Tensor) -> Tensor:
        """The outer decoder's states after each item of [batch, items, levels], [batch, items, d_model]."""
        tokens = history_tokens(codes, self.config.codebook_size).unflatten(1, codes.shape[1:])
        x = self.dropout(self.embedding(tokens).sum(2))
        bias = self.backwards(codes.shape[1], self.outer_bias)
        for layer in self.outer:
            x, _, _ = layer(x, bias)
        return self.outer_norm(x)

    def begin(self, states: Tensor) -> EncodedHistory:
        """The inner decoder after its first token, the outer one's state [batch, d_model]."""
        x, keys, values = self.read(states[:, None])
        ones = torch.ones(len(x), device=x.device, dtype=torch.long)
        return EncodedHistory(keys, values, x.new_zeros(len(x), 1, 1, 1), ones, x[:, 0])
