"""The students' network: T5's architecture on codewords, with the history encoded once for all candidates and beams.

Relative position biases, RMS norms without means, no biases in the linear maps, attention without 1/√d scaling (Raffel
et al., 2020). The vocabulary is one pad row and `levels × codebook_size` codewords; each level has its own output head.
One thing is not T5's: a table of recencies, counted in items from the end, is added to the encoder's input. Relative
biases alone find the last item, which matters most, only in a roundabout way; with zeros there the network is T5's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRESETS: dict[str, dict[str, int]] = {
    # sizes of the embedded demo: minutes on two cores
    "demo": {"d_model": 64, "d_ff": 256, "heads": 4, "d_head": 16, "encoder_layers": 2, "decoder_layers": 2},
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


class Memory(NamedTuple):
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
        self.encoder_norm, self.decoder_norm = nn.RMSNorm(c.d_model, eps=1e-6), nn.RMSNorm(c.d_model, eps=1e-6)
        self.head = nn.Parameter(torch.empty(c.levels, c.codebook_size, c.d_model))
        self.dropout = nn.Dropout(c.dropout)
        self._initialise()

    def _initialise(self) -> None:
        """T5's initialisation with factor 1: queries carry the 1/√d that the attention leaves out."""
        c = self.config
        special = {"q": (c.d_model * c.d_head) ** -0.5, "o": (c.heads * c.d_head) ** -0.5, "wo": c.d_ff**-0.5}
        special["embedding"] = special["recency"] = 1.0
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                layer = name.removesuffix(".weight").rsplit(".", 1)[-1]
                nn.init.normal_(parameter, std=special.get(layer, c.d_model**-0.5))

    def forward(self, history: Tensor, items: Tensor, scope: str = "level") -> Tensor:
        """`log_probs` of candidates after histories; see `encode` for the shapes."""
        return self.log_probs(self.encode(history), items, scope)

    def encode(self, codes: Tensor) -> Memory:
        """Encode histories.

        Args:
            codes: codewords of the items, oldest first; whole items padded with -1 on the right [batch, items, levels].
        """
        c = self.config
        level = torch.arange(c.levels, device=codes.device) * c.codebook_size
        tokens = torch.where(codes >= 0, codes + level + 1, 0).flatten(1)
        items = (codes[..., 0] >= 0).sum(1, keepdim=True)
        age = (items - 1 - torch.arange(codes.shape[1], device=codes.device)).clamp(0, c.max_items - 1)
        mask = torch.zeros(tokens.shape, device=codes.device, dtype=self.head.dtype)
        mask = mask.masked_fill(tokens == 0, torch.finfo(mask.dtype).min)[:, None, None, :]
        length = tokens.shape[1]
        place = torch.arange(length, device=codes.device)
        buckets = relative_buckets(place[None, :] - place[:, None], True, c.buckets, c.max_distance)
        bias = mask + self.encoder_bias(buckets).permute(2, 0, 1)
        x = self.dropout(self.embedding(tokens) + self.recency(age).repeat_interleave(c.levels, dim=1))
        for layer in self.encoder:
            x = layer(x, bias)
        x = self.dropout(self.encoder_norm(x))
        pairs = [layer.cross.keys_values(x) for layer in self.decoder]
        return Memory([key for key, _ in pairs], [value for _, value in pairs], mask)

    def decode(self, tokens: Tensor, memory: Memory, past: list | None = None) -> tuple[Tensor, list]:
        """Decoder states of new tokens, for many candidates or beams over one history.

        Args:
            tokens: vocabulary numbers; 0 opens an item [batch, k, new].
            memory: of `encode`, shared by the k.
            past: per layer, keys and values of the tokens before [batch · k, heads, old, d_head].

        Returns:
            States [batch, k, new, d_model], and `past` with the new tokens.
        """
        c = self.config
        batch, k, new = tokens.shape
        old = past[0][0].shape[2] if past else 0
        place = torch.arange(old + new, device=tokens.device)
        distance = place[None, :] - place[old:, None]
        bias = self.decoder_bias(relative_buckets(distance, False, c.buckets, c.max_distance)).permute(2, 0, 1)[None]
        bias = bias.masked_fill(distance > 0, torch.finfo(bias.dtype).min)
        x = self.dropout(self.embedding(tokens)).view(batch, k * new, c.d_model)
        present = []
        for number, layer in enumerate(self.decoder):
            x, pair = layer(x, bias, k, memory.keys[number], memory.values[number], memory.mask, past and past[number])
            present.append(pair)
        return self.dropout(self.decoder_norm(x)).view(batch, k, new, c.d_model), present

    def log_probs(self, memory: Memory, items: Tensor, scope: str = "level") -> Tensor:
        """Teacher-forced log-probabilities of every codeword at every position.

        Args:
            memory: of `encode`.
            items: codewords of k candidates [batch, k, levels].
            scope: softmax over the level's codewords, or over "all" levels'.

        Returns:
            [batch, k, levels, codebook_size], or [..., levels · codebook_size] for "all".
        """
        c = self.config
        level = torch.arange(c.levels - 1, device=items.device) * c.codebook_size
        tokens = F.pad(items[..., :-1] + level + 1, (1, 0))
        states, _ = self.decode(tokens, memory)
        if scope == "level":
            logits = torch.einsum("bkld,lnd->bkln", states, self.head)
        else:
            logits = states @ self.head.flatten(0, 1).T
        return logits.float().log_softmax(-1)

    def step(self, memory: Memory) -> Seq2SeqStep:
        """A fresh step function for `beam_search`."""
        return Seq2SeqStep(self, memory)


class Seq2SeqStep:
    """`beam.Step`: one new codeword a beam, the self-attention's cache gathered by parent."""

    def __init__(self, model: Seq2Seq, memory: Memory):
        self.model, self.memory, self.past = model, memory, None

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        c = self.model.config
        if level == 0:
            tokens = torch.zeros(len(self.memory.mask), 1, 1, dtype=torch.long, device=self.memory.mask.device)
        else:
            tokens = (codes + 1 + (level - 1) * c.codebook_size)[..., None]
            batch = len(parents)
            before = self.past[0][0].shape[0] // batch
            rows = (torch.arange(batch, device=parents.device)[:, None] * before + parents).flatten()
            self.past = [(key[rows], value[rows]) for key, value in self.past]
        states, self.past = self.model.decode(tokens, self.memory, self.past)
        return (states[:, :, 0] @ self.model.head[level].T).float().log_softmax(-1)


class Attention(nn.Module):
    """Multi-head attention without scaling and without biases."""

    def __init__(self, c: Seq2SeqConfig):
        super().__init__()
        self.heads, inner = c.heads, c.heads * c.d_head
        self.q, self.k = nn.Linear(c.d_model, inner, bias=False), nn.Linear(c.d_model, inner, bias=False)
        self.v, self.o = nn.Linear(c.d_model, inner, bias=False), nn.Linear(inner, c.d_model, bias=False)

    def split(self, x: Tensor) -> Tensor:
        """[batch, length, heads · d_head] → [batch, heads, length, d_head]."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of x [batch, length, d_model], each [batch, heads, length, d_head]."""
        return self.split(self.k(x)), self.split(self.v(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Attend from x [batch, length, d_model] with an additive bias [batch or 1, heads or 1, length or 1, keys]."""
        queries = self.split(self.q(x))
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=1.0)
        return self.o(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, ReLU, linear. No dropout between them: on CPUs its random numbers cost as much as the layer."""

    def __init__(self, c: Seq2SeqConfig):
        super().__init__()
        self.wi, self.wo = nn.Linear(c.d_model, c.d_ff, bias=False), nn.Linear(c.d_ff, c.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.relu(self.wi(x)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with norm before and residual after."""

    def __init__(self, c: Seq2SeqConfig):
        super().__init__()
        self.attention, self.ff = Attention(c), FeedForward(c)
        self.norm1, self.norm2 = nn.RMSNorm(c.d_model, eps=1e-6), nn.RMSNorm(c.d_model, eps=1e-6)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.dropout(self.attention(normed, *self.attention.keys_values(normed), bias))
        return x + self.dropout(self.ff(self.norm2(x)))


class DecoderLayer(nn.Module):
    """Self-attention within each candidate, cross-attention of all candidates to one history, feed-forward."""

    def __init__(self, c: Seq2SeqConfig):
        super().__init__()
        self.attention, self.cross, self.ff = Attention(c), Attention(c), FeedForward(c)
        self.norm1, self.norm2, self.norm3 = (nn.RMSNorm(c.d_model, eps=1e-6) for _ in range(3))
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x, bias, k, keys, values, mask, past):
        """x [batch, k · new, d_model]; candidates are separate rows for self-attention, one row for the history."""
        normed = self.norm1(x).view(x.shape[0] * k, -1, x.shape[2])
        own = self.attention.keys_values(normed)
        if past:
            own = (torch.cat([past[0], own[0]], dim=2), torch.cat([past[1], own[1]], dim=2))
        x = x + self.dropout(self.attention(normed, *own, bias).view_as(x))
        x = x + self.dropout(self.cross(self.norm2(x), keys, values, mask))
        return x + self.dropout(self.ff(self.norm3(x))), own


def relative_buckets(distance: Tensor, both_ways: bool, buckets: int, max_distance: int) -> Tensor:
    """T5's bucket of each key-minus-query distance: exact when near, logarithmic when far."""
    result = torch.zeros_like(distance)
    if both_ways:
        buckets //= 2
        result = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    far = exact + (
        torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (buckets - exact)
    ).long().clamp(max=buckets - exact - 1)
    return result + torch.where(distance < exact, distance, far)
