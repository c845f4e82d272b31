"""The `seq2seq` student: T5's encoder-decoder on codewords (Raffel et al., 2020; TIGER, Rajput et al., 2023).

The vocabulary is one pad token and `levels × codebook_size` codewords; each level has its own output head. The history
is encoded once for all candidates and beams of a user.

One addition to T5: a table of recencies, counted in items from the end of the history, is added to the encoder's input.
Relative biases find the last item, which matters most, only indirectly. With zeros in the table the network is T5.
Texts of the items (`text`) are added to all tokens of their items, or are the only token of each item.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from student.models.codeword_tables import CodewordTables
from student.models.fast_paths import CachedStep, KeysValues, PrefixTree, attend_one_token
from student.models.item_text import HistoryText, TextConfig
from student.models.layers import (
    Attention,
    Featured,
    FeedForward,
    SelfAttentionLayer,
    forced_log_probs,
    history_tokens,
    initialise,
    level_log_probs,
    padding_mask,
    prefix_tokens,
    relative_buckets,
)
from student.models.packing import NO_PACKING, NoPacking, Packing, choose_packing

PRESETS: dict[str, dict[str, int]] = {
    # for the demo: minutes on two CPU cores
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
    """Sizes of the network; `levels` and `codebook_size` are the semantic IDs'."""

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
    text: TextConfig | None = None
    features: int = 0
    feature_layers: int = 1
    tied: bool = False


class EncodedHistory(NamedTuple):
    """The encoder's output for a batch of histories, as the decoder's cross-attention reads it.

    Attributes:
        keys, values: one per decoder layer, each [batch, heads, length, d_head].
        mask: additive mask of the padding [batch, 1, 1, length].
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor


class Seq2Seq(Featured, CodewordTables):
    """Encoder over the history's codewords, decoder over the next item's."""

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.config = config
        c = config
        self.add_tables(c.levels, c.codebook_size, c.d_model, c.tied)
        self.recency = nn.Embedding(c.max_items, c.d_model)
        self.text = HistoryText(c.text, c.d_model, c.codebook_size) if c.text else None
        self.encoder = nn.ModuleList(SelfAttentionLayer(c) for _ in range(c.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(c) for _ in range(c.decoder_layers))
        self.encoder_bias = nn.Embedding(c.buckets, c.heads)
        self.decoder_bias = nn.Embedding(c.buckets, c.heads)
        place = torch.arange(c.levels, device="cpu")  # arithmetic on the device "meta" imports torch's compiler
        buckets = relative_buckets(place[None, :] - place[:, None], False, c.buckets, c.max_distance)
        self.register_buffer("decoder_buckets", buckets, persistent=False)
        self.encoder_norm, self.decoder_norm = nn.RMSNorm(c.d_model, eps=1e-6), nn.RMSNorm(c.d_model, eps=1e-6)
        self.dropout = nn.Dropout(c.dropout)
        self.add_feature_head(c.d_model, c.features, c.feature_layers, c.decoder_layers)
        initialise(self, c.d_model, c.d_ff, c.heads, c.d_head, c.tied)

    def forward(self, history: Tensor, items: Tensor, scope: str = "level") -> Tensor:
        """Score candidates after histories: `log_probs` of `encode`; see there for the shapes."""
        return self.log_probs(self.encode(history), items, scope)

    def encode(self, codes: Tensor) -> EncodedHistory:
        """Encode histories.

        Args:
            codes: codewords of the items, oldest first; whole items padded with -1 on the right [batch, items, levels].
        """
        x, present, packing = self.encoder_states(codes)
        keys, values = zip(*(layer.cross.keys_values(x, packing) for layer in self.decoder), strict=True)
        return EncodedHistory(list(keys), list(values), padding_mask(present, self.embedding.weight.dtype))

    def encoder_states(self, codes: Tensor) -> tuple[Tensor, Tensor, Packing | NoPacking]:
        """Run the encoder.

        Args:
            codes: as for `encode`.

        Returns:
            States after the last norm [batch, length, d_model] or packed; which tokens are no padding [batch, length];
            the packing.
        """
        embedded, present = self.embed_history(codes)
        bias = padding_mask(present, self.embedding.weight.dtype) + self.history_bias(present.shape[1])
        packing = choose_packing(present)
        x = self.dropout(packing.pack(embedded))
        for layer in self.encoder:
            x, _, _ = layer(x, bias, packing)
        return self.dropout(self.encoder_norm(x)), present, packing

    def embed_history(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Embed the encoder's tokens: one for each codeword, or one for each item where only its text is read.

        Args:
            codes: as for `encode`.

        Returns:
            [batch, length, d_model], and which tokens are no padding [batch, length].
        """
        recency = self.recency_embedding(codes)
        if self.text is not None and self.text.only:
            return self.text(codes) + recency, codes[..., 0] >= 0
        levels, tokens = self.config.levels, history_tokens(codes, self.config.codebook_size)
        embedded = self.embed(tokens) + recency.repeat_interleave(levels, dim=1)
        if self.text is not None:
            embedded = embedded + self.text(codes).repeat_interleave(levels, dim=1)
        return embedded, tokens > 0

    def log_probs(self, encoded: EncodedHistory, items: Tensor, scope: str = "level") -> Tensor:
        """Compute the log-probabilities of every codeword at every position of candidates, by teacher forcing.

        Args:
            encoded: histories, from `encode`.
            items: codewords of k candidates [batch, k, levels].
            scope: softmax over the "level"'s codewords, or over "all" levels'.

        Returns:
            [batch, k, levels, codebook_size], or [..., levels · codebook_size] for "all".
        """
        inputs = F.pad(prefix_tokens(items, self.config.codebook_size), (1, 0))  # the pad token opens, as in T5
        tree = PrefixTree(inputs)
        states = self.decode(tree.tokens, tree.depth, tree.visible, encoded, choose_packing(tree.present))
        states = [tree.by_candidate(each) for each in states]
        self.guess_features([each[:, 0] for each in states])
        return forced_log_probs(states[-1], self.output_table(), scope)

    def decode(
        self, tokens: Tensor, depth: Tensor, visible: Tensor, encoded: EncodedHistory, packing: Packing | NoPacking
    ) -> list[Tensor]:
        """Run the decoder over the tokens of candidates.

        Args:
            tokens: [batch, length].
            depth: position of each in its candidate [batch, length].
            visible: which token (second) sees which (last) [batch, length, length].
            encoded: histories.
            packing: of the tokens.

        Returns:
            States of the `inner_layers` and, last, of the whole decoder [batch, length, d_model].
        """
        bias = self.decoder_bias(self.decoder_buckets[depth[:, :, None], depth[:, None]]).movedim(-1, 1)
        bias = bias.masked_fill(~visible[:, None], torch.finfo(bias.dtype).min)
        x = self.dropout(packing.pack(self.embed(tokens)))
        states = []
        for number, (layer, keys, values) in enumerate(zip(self.decoder, encoded.keys, encoded.values, strict=True), 1):
            x = layer(x, bias, keys, values, encoded.mask, packing)
            if number in self.inner_layers:
                states.append(x)
        return [packing.pad(each) for each in (*states, self.dropout(self.decoder_norm(x)))]

    def step(self, encoded: EncodedHistory, scope: str = "level") -> CachedStep:
        """Make a step function for `beam_search`, softmax over the "level"'s codewords or over "all" levels'."""
        return CachedStep(self, encoded, len(self.decoder), scope)

    def next_codeword(
        self,
        level: int,
        tokens: Tensor | None,
        past: list[list[KeysValues]],
        encoded: EncodedHistory,
        scope: str = "level",
    ) -> tuple[Tensor, list[KeysValues]]:
        """Compute the log-probabilities of the next codeword of every beam: a pure function of static shapes.

        Args:
            level: of the codeword; a constant, so that a compiler makes one graph per level.
            tokens: the codewords before it [batch, beams]; None for the first, where there is one beam per user.
            past: for each decoder layer, keys and values of each earlier token [batch · beams, heads · d_head].
            encoded: histories, shared by all beams of a user.
            scope: as for `log_probs`.

        Returns:
            [batch, beams, codebook_size], and for each decoder layer keys and values of the new tokens.
        """
        if tokens is None:
            tokens = torch.zeros(encoded.mask.shape[0], 1, dtype=torch.long, device=encoded.mask.device)
        bias = self.decoder_bias(self.decoder_buckets[level, : level + 1]).T
        x, present = self.embed(tokens), []
        for number, layer in enumerate(self.decoder):
            x, new = layer.step(x, past[number], bias, encoded.keys[number], encoded.values[number], encoded.mask)
            present.append(new)
        return level_log_probs(self.decoder_norm(x), self.output_table(), level, scope), present

    def history_bias(self, length: int) -> Tensor:
        """Compute T5's relative bias between the encoder's tokens [heads, length, length]."""
        place = torch.arange(length, device=self.embedding.weight.device)
        distance = place[None, :] - place[:, None]
        buckets = relative_buckets(distance, True, self.config.buckets, self.config.max_distance)
        return self.encoder_bias(buckets).permute(2, 0, 1)

    def recency_embedding(self, codes: Tensor) -> Tensor:
        """Embed how many items stand after each item [batch, items, d_model]."""
        c = self.config
        items = (codes[..., 0] >= 0).sum(1, keepdim=True)
        age = (items - 1 - torch.arange(codes.shape[1], device=codes.device)).clamp(0, c.max_items - 1)
        return self.recency(age)


class DecoderLayer(nn.Module):
    """Self-attention among candidates' tokens, cross-attention to the history, feed-forward."""

    def __init__(self, c: Seq2SeqConfig):
        super().__init__()
        self.attention, self.cross = (Attention(c.d_model, c.heads, c.d_head) for _ in range(2))
        self.ff = FeedForward(c.d_model, c.d_ff)
        self.norm1, self.norm2, self.norm3 = (nn.RMSNorm(c.d_model, eps=1e-6) for _ in range(3))
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self, x: Tensor, bias: Tensor, keys: Tensor, values: Tensor, mask: Tensor, packing: Packing | NoPacking
    ) -> Tensor:
        """Transform x.

        Args:
            x: [batch, length, d_model] or packed.
            bias: of the self-attention [batch, heads, length, length].
            keys, values, mask: of the history, as in `EncodedHistory`.
            packing: of x.
        """
        normed = self.norm1(x)
        x = x + self.dropout(self.attention(normed, *self.attention.keys_values(normed, packing), bias, packing))
        return self.cross_attend(x, keys, values, mask, packing)

    def step(
        self, x: Tensor, past: list[KeysValues], bias: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """Transform one new token per beam, x [batch, beams, d_model]; see `attend_one_token`."""
        mixed, new = attend_one_token(self.attention, self.norm1(x).flatten(0, 1), past, bias)
        return self.cross_attend(x + mixed.view_as(x), keys, values, mask), new

    def cross_attend(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor, packing: Packing | NoPacking = NO_PACKING
    ) -> Tensor:
        """Cross-attention to the history, then feed-forward."""
        x = x + self.dropout(self.cross(self.norm2(x), keys, values, mask, packing))
        return x + self.dropout(self.ff(self.norm3(x)))
