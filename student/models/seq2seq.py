"""The students' network: T5's architecture on codewords, with the history encoded once for all candidates and beams.

The vocabulary is one pad row and `levels × codebook_size` codewords; each level has its own output head.
One thing is not T5's: a table of recencies, counted in items from the end, is added to the encoder's input. Relative
biases alone find the last item, which matters most, only in a roundabout way; with zeros there the network is T5's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from student.models.layers import (
    PLAIN,
    Attention,
    CachedStep,
    EncoderLayer,
    FeedForward,
    NoPacking,
    Packing,
    Pair,
    Prefixes,
    among_all,
    forced_log_probs,
    history_tokens,
    initialise,
    level_log_probs,
    packing_of,
    padding_mask,
    relative_buckets,
)

PRESETS: dict[str, dict[str, int]] = {
    # sizes of the embedded demo: minutes on two cores
    "demo": {"d_model": 64, "d_ff": 256, "heads": 4, "d_head": 16, "encoder_layers": 2, "decoder_layers": 2},
    # about 1.2M parameters
    "small": {"d_model": 128, "d_ff": 512, "heads": 4, "d_head": 32, "encoder_layers": 2, "decoder_layers": 2},
    # TIGER's re-implementations: about 4.5M parameters
    "tiger-4m": {"d_model": 128, "d_ff": 1024, "heads": 6, "d_head": 64, "encoder_layers": 4, "decoder_layers": 4},
    # the paper's size: 384-d, about 13M parameters
    "lohrec-13m": {"d_model": 384, "d_ff": 1024, "heads": 6, "d_head": 64, "encoder_layers": 4, "decoder_layers": 3},
}


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Sizes of the network; `levels` and `codebook_size` come from the semantic IDs."""

    levels: int
    codebook_size: int
    d_model: int = 64
    d_ff: int = 256
    heads: int = 4
    d_head: int = 16
    encoder_layers: int = 2
    decoder_layers: int = 2
    dropout: float = 0.1
    buckets: int = 32
    max_distance: int = 128
    max_items: int = 32


class EncodedHistory(NamedTuple):
    """An encoded history: cross-attention keys and values of every decoder layer [batch, heads, length, d_head], and
    the additive mask of its padding [batch, 1, 1, length]."""

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor


class Seq2Seq(nn.Module):
    """Encoder over the history's codewords, decoder over one item's."""

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.config = config
        c = config
        self.embedding = nn.Embedding(1 + c.levels * c.codebook_size, c.d_model)
        self.recency = nn.Embedding(c.max_items, c.d_model)
        self.encoder = nn.ModuleList(EncoderLayer(c) for _ in range(c.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(c) for _ in range(c.decoder_layers))
        self.encoder_bias = nn.Embedding(c.buckets, c.heads)
        self.decoder_bias = nn.Embedding(c.buckets, c.heads)
        place = torch.arange(c.levels)
        buckets = relative_buckets(place[None, :] - place[:, None], False, c.buckets, c.max_distance)
        self.register_buffer("decoder_buckets", buckets, persistent=False)
        self.encoder_norm, self.decoder_norm = nn.RMSNorm(c.d_model, eps=1e-6), nn.RMSNorm(c.d_model, eps=1e-6)
        self.head = nn.Parameter(torch.empty(c.levels, c.codebook_size, c.d_model))
        self.dropout = nn.Dropout(c.dropout)
        initialise(self, c.d_model, c.d_ff, c.heads, c.d_head)

    def forward(self, history: Tensor, items: Tensor, scope: str = "level") -> Tensor:
        """`log_probs` of candidates after histories; see `encode` for the shapes."""
        return self.log_probs(self.encode(history), items, scope)

    def encode(self, codes: Tensor) -> EncodedHistory:
        """Encode histories.

        Args:
            codes: codewords of the items, oldest first; whole items padded with -1 on the right [batch, items, levels].
        """
        c = self.config
        tokens = history_tokens(codes, c.codebook_size)
        items = (codes[..., 0] >= 0).sum(1, keepdim=True)
        age = (items - 1 - torch.arange(codes.shape[1], device=codes.device)).clamp(0, c.max_items - 1)
        mask = padding_mask(tokens, self.head.dtype)
        place = torch.arange(tokens.shape[1], device=codes.device)
        buckets = relative_buckets(place[None, :] - place[:, None], True, c.buckets, c.max_distance)
        bias = mask + self.encoder_bias(buckets).permute(2, 0, 1)
        packing = packing_of(tokens)
        x = self.dropout(packing.pack(self.embedding(tokens) + self.recency(age).repeat_interleave(c.levels, dim=1)))
        for layer in self.encoder:
            x, _, _ = layer(x, bias, packing)
        x = self.dropout(self.encoder_norm(x))
        pairs = [layer.cross.keys_values(x, packing) for layer in self.decoder]
        return EncodedHistory([key for key, _ in pairs], [value for _, value in pairs], mask)

    def log_probs(self, memory: EncodedHistory, items: Tensor, scope: str = "level") -> Tensor:
        """Teacher-forced log-probabilities of every codeword at every position.

        Args:
            memory: of `encode`.
            items: codewords of k candidates [batch, k, levels].
            scope: softmax over the level's codewords, or over "all" levels'.

        Returns:
            [batch, k, levels, codebook_size], or [..., levels · codebook_size] for "all".
        """
        tree = Prefixes(F.pad(among_all(items[..., :-1], self.config.codebook_size) + 1, (1, 0)))
        bias = self.decoder_bias(self.decoder_buckets[tree.depth[:, :, None], tree.depth[:, None]]).movedim(-1, 1)
        bias = bias.masked_fill(~tree.sees[:, None], torch.finfo(bias.dtype).min)
        packing = packing_of(tree.here)
        x = self.dropout(packing.pack(self.embedding(tree.tokens)))
        for number, layer in enumerate(self.decoder):
            x = layer(x, bias, memory.keys[number], memory.values[number], memory.mask, packing)
        states = packing.pad(self.dropout(self.decoder_norm(x)))
        return forced_log_probs(tree.each(states), self.head, scope)

    def step(self, memory: EncodedHistory, scope: str = "level") -> CachedStep:
        """A fresh step function for `beam_search`; scores over the level's codewords, or over "all" levels'."""
        return CachedStep(self, memory, len(self.decoder), scope)

    def next_codeword(
        self, level: int, tokens: Tensor | None, past: list[list[Pair]], memory: EncodedHistory, scope: str = "level"
    ) -> tuple[Tensor, list[Pair]]:
        """Log-probabilities of one more codeword for every beam: a pure function of static shapes.

        Args:
            level: of the codeword; constant, so that a compiler makes one graph a level.
            tokens: vocabulary numbers of the codewords before it [batch, beams]; None for the first, which one beam a
                user asks for.
            past: per decoder layer, keys and values of each earlier token [batch · beams, heads · d_head].
            memory: of `encode`, shared by all beams of a user.
            scope: as for `log_probs`.

        Returns:
            [batch, beams, codebook_size], and per decoder layer keys and values of the new tokens.
        """
        if tokens is None:
            tokens = torch.zeros(len(memory.mask), 1, dtype=torch.long, device=memory.mask.device)
        bias = self.decoder_bias(self.decoder_buckets[level, : level + 1]).T
        x, present = self.embedding(tokens), []
        for number, layer in enumerate(self.decoder):
            x, new = layer.step(x, past[number], bias, memory.keys[number], memory.values[number], memory.mask)
            present.append(new)
        states = self.decoder_norm(x)
        return level_log_probs(states, self.head, level, scope), present


class DecoderLayer(nn.Module):
    """Self-attention within the tree of candidates, cross-attention of all to one history, feed-forward."""

    def __init__(self, c: Seq2SeqConfig):
        super().__init__()
        self.attention, self.cross = (Attention(c.d_model, c.heads, c.d_head) for _ in range(2))
        self.ff = FeedForward(c.d_model, c.d_ff)
        self.norm1, self.norm2, self.norm3 = (nn.RMSNorm(c.d_model, eps=1e-6) for _ in range(3))
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self, x: Tensor, bias: Tensor, keys: Tensor, values: Tensor, mask: Tensor, packing: Packing | NoPacking
    ) -> Tensor:
        """x [batch, nodes, d_model] or packed; the bias says who sees whom [batch, heads, nodes, nodes]."""
        normed = self.norm1(x)
        own = self.attention.keys_values(normed, packing)
        x = x + self.dropout(self.attention(normed, *own, bias, packing))
        return self.look_back(x, keys, values, mask, packing)

    def step(self, x: Tensor, past: list[Pair], bias: Tensor, keys: Tensor, values: Tensor, mask: Tensor):
        """x [batch, beams, d_model], one new token a beam; see `Attention.step`."""
        mixed, new = self.attention.step(self.norm1(x).flatten(0, 1), past, bias)
        return self.look_back(x + mixed.view_as(x), keys, values, mask), new

    def look_back(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor, packing: Packing | NoPacking = PLAIN
    ) -> Tensor:
        """Cross-attention to the history and feed-forward."""
        x = x + self.dropout(self.cross(self.norm2(x), keys, values, mask, packing))
        return x + self.dropout(self.ff(self.norm3(x)))
