"""A decoder-only student: it reads the user's codewords once and goes on from there, one codeword at a time.

The same interface as `seq2seq`: `encode` a history, then `log_probs` of candidates or a `step` for beam search. All
candidates and beams of a user look at one copy of the history's keys and values. `one_pass` is its own: it trains all
prefixes of a sequence at once. Positions are relative and no token sees a later one, so that the numbers are those of
one pass a prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from student.models.layers import (
    CachedStep,
    EncoderLayer,
    NoPacking,
    Packing,
    Pair,
    Prefixes,
    among_all,
    chosen_log_probs,
    forced_log_probs,
    history_tokens,
    initialise,
    level_log_probs,
    packing_of,
    padding_mask,
    relative_buckets,
)

PRESETS: dict[str, dict[str, int]] = {  # as many parameters as seq2seq's of the same name
    "demo": {"d_model": 64, "d_ff": 256, "heads": 4, "d_head": 16, "layers": 5},
    "small": {"d_model": 128, "d_ff": 512, "heads": 4, "d_head": 32, "layers": 5},
    "tiger-4m": {"d_model": 192, "d_ff": 1024, "heads": 6, "d_head": 64, "layers": 6},
    "lohrec-13m": {"d_model": 384, "d_ff": 1024, "heads": 6, "d_head": 64, "layers": 9},
}


@dataclass(frozen=True)
class CausalConfig:
    """Sizes of the network; `levels` and `codebook_size` come from the semantic IDs."""

    levels: int
    codebook_size: int
    d_model: int = 64
    d_ff: int = 256
    heads: int = 4
    d_head: int = 16
    layers: int = 5
    dropout: float = 0.1
    buckets: int = 32
    max_distance: int = 128


class EncodedHistory(NamedTuple):
    """A history that was read: every layer's keys and values [batch, heads, length, d_head], the additive mask of its
    padding [batch, 1, 1, length], its number of tokens [batch], and the state after the last one [batch, d_model]."""

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor
    lengths: Tensor
    state: Tensor


class Positions(NamedTuple):
    """What `one_pass` trains: item `places[i]` of sequence `rows[i]` is a target [n], at least 1; candidates attach in
    sequence b before the items `groups[b]` [batch, groups], -1 for none."""

    rows: Tensor
    places: Tensor
    groups: Tensor | None = None


class Causal(nn.Module):
    """T5's layers without cross-attention, every token seeing those before it."""

    def __init__(self, config: CausalConfig):
        super().__init__()
        self.config = config
        c = config
        self.embedding = nn.Embedding(1 + c.levels * c.codebook_size, c.d_model)
        self.layers = nn.ModuleList(CausalLayer(c) for _ in range(c.layers))
        self.bias = nn.Embedding(c.buckets, c.heads)
        self.norm = nn.RMSNorm(c.d_model, eps=1e-6)
        self.head = nn.Parameter(torch.empty(c.levels, c.codebook_size, c.d_model))
        self.dropout = nn.Dropout(c.dropout)
        initialise(self, c.d_model, c.d_ff, c.heads, c.d_head)

    def forward(self, history: Tensor, items: Tensor, scope: str = "level", at: Positions | None = None):
        """`log_probs` of candidates after histories, or `one_pass` over whole sequences; see there for the shapes."""
        if at is not None:
            return self.one_pass(history, items, at, scope)
        return self.log_probs(self.encode(history), items, scope)

    def one_pass(
        self, sequences: Tensor, items: Tensor | None, at: Positions, scope: str = "level"
    ) -> tuple[Tensor, Tensor | None]:
        """All labelled positions of users' sequences at once, and candidates beside some of them.

        Args:
            sequences: codewords of the items, oldest first, targets among them; whole items padded with -1 on the right
                [batch, items, levels].
            items: codewords of candidates at the places `at.groups` [batch, groups, k, levels]; None: none.
            at: which items are targets, and where candidates attach.
            scope: softmax over the level's codewords, or over "all" levels'.

        Returns:
            Log-probabilities along each target's codewords [n, levels, V], V as for `log_probs`; log-probabilities of
            the candidates' own codewords [batch, groups, k, levels], anything where a group is none.
        """
        levels = self.config.levels
        tokens = history_tokens(sequences, self.config.codebook_size)[:, :-1]  # nothing follows the last codeword
        x, keys, values = self.read(self.embedding(tokens))
        flat, width = x.flatten(0, 1), x.shape[1]
        first = at.rows * width + at.places * levels - 1  # the state that tells a target's first codeword
        states = flat[first[:, None] + torch.arange(levels, device=first.device)]
        own = forced_log_probs(states[:, None], self.head, scope)[:, 0]
        if items is None:
            return own, None
        place = at.groups.clamp(min=1) * levels  # [batch, groups]
        row = torch.arange(len(place), device=place.device)[:, None]
        before = flat[row * width + place - 1]  # [batch, groups, d_model]
        heads = level_log_probs(before, self.head, 0, scope).gather(-1, items[..., 0])
        states = self.attach(items, keys, values, place)
        rest = chosen_log_probs(states, self.head, items[..., 1:], scope)
        return own, torch.cat([heads[..., None], rest], dim=-1)

    def encode(self, codes: Tensor) -> EncodedHistory:
        """Read histories.

        Args:
            codes: codewords of the items, oldest first; whole items padded with -1 on the right [batch, items, levels].
        """
        tokens = history_tokens(codes, self.config.codebook_size)
        x, keys, values = self.read(self.embedding(tokens))
        lengths = (tokens > 0).sum(1)
        last = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, x.shape[-1])
        return EncodedHistory(keys, values, padding_mask(tokens, x.dtype), lengths, x.gather(1, last).squeeze(1))

    def read(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """States after each token, whose embeddings these are [batch, length, d_model], and every layer's keys and
        values."""
        bias = self.backwards(x.shape[1], self.bias)
        x = self.dropout(x)
        keys, values = [], []
        for layer in self.layers:
            x, key, value = layer(x, bias)
            keys.append(key)
            values.append(value)
        return self.dropout(self.norm(x)), keys, values

    def attach(self, items: Tensor, keys: list[Tensor], values: list[Tensor], places: Tensor) -> Tensor:
        """States after each codeword but the last of candidates that continue a history.

        Args:
            items: codewords [batch, groups, k, levels]; the candidates of a group stand at one place.
            keys, values: of the history, layer by layer.
            places: tokens of the history before each group, all that its candidates see of it [batch, groups].

        Returns:
            [batch, groups, k, levels - 1, d_model].
        """
        tree = Prefixes((among_all(items[..., :-1], self.config.codebook_size) + 1).flatten(0, 1))
        near = self.relative(tree.depth[:, None] - tree.depth[:, :, None])
        near = near.masked_fill(~tree.sees[:, None], torch.finfo(near.dtype).min)
        place, nodes = places[..., None], tree.depth.view(*places.shape, -1)
        spots = torch.arange(keys[0].shape[2], device=places.device)
        far = self.relative((spots - (place + nodes).flatten(1)[..., None]).clamp(max=0))
        later = spots >= place.expand_as(nodes).flatten(1)[..., None]
        far = far.masked_fill(later[:, None], torch.finfo(far.dtype).min)
        packing = packing_of(tree.here)
        x = self.dropout(packing.pack(self.embedding(tree.tokens)))
        for number, layer in enumerate(self.layers):
            x = layer.candidates(x, keys[number], values[number], far, near, packing)
        return tree.each(packing.pad(self.dropout(self.norm(x)))).unflatten(0, places.shape)

    def backwards(self, length: int, table: nn.Embedding) -> Tensor:
        """Bias of a sequence whose tokens see those before them [1, heads, length, length].

        Padding stands on the right, where no real token sees it.
        """
        place = torch.arange(length, device=table.weight.device)
        return self.relative(place[None, :] - place[:, None], table)[None]

    def relative(self, distance: Tensor, table: nn.Embedding | None = None) -> Tensor:
        """Bias of key-minus-query distances [..., queries, keys] → [..., heads, queries, keys]; tokens ahead hidden."""
        c = self.config
        bias = (table or self.bias)(relative_buckets(distance, False, c.buckets, c.max_distance)).movedim(-1, -3)
        return bias.masked_fill((distance > 0).unsqueeze(-3), torch.finfo(bias.dtype).min)

    def beside(self, memory: EncodedHistory, after: int) -> Tensor:
        """Bias of a token, `after` places after the history, towards the history [batch, heads, 1, length]."""
        at = memory.lengths[:, None] + after
        place = torch.arange(memory.mask.shape[-1], device=at.device)
        return self.relative((place - at[..., None]).clamp(max=0)) + memory.mask

    def log_probs(self, memory: EncodedHistory, items: Tensor, scope: str = "level") -> Tensor:
        """Teacher-forced log-probabilities of every codeword at every position.

        Args:
            memory: of `encode`.
            items: codewords of k candidates [batch, k, levels].
            scope: softmax over the level's codewords, or over "all" levels'.

        Returns:
            [batch, k, levels, codebook_size], or [..., levels · codebook_size] for "all".
        """
        x = self.attach(items[:, None], memory.keys, memory.values, memory.lengths[:, None])[:, 0]
        first = memory.state[:, None, None].expand(-1, items.shape[1], -1, -1)
        return forced_log_probs(torch.cat([first, x], dim=2), self.head, scope)

    def step(self, memory: EncodedHistory, scope: str = "level") -> CachedStep:
        """A fresh step function for `beam_search`; scores over the level's codewords, or over "all" levels'."""
        return CachedStep(self, memory, len(self.layers), scope)

    def next_codeword(
        self, level: int, tokens: Tensor | None, past: list[list[Pair]], memory: EncodedHistory, scope: str = "level"
    ) -> tuple[Tensor, list[Pair]]:
        """As `Seq2Seq.next_codeword`; `tokens` is None for the first codeword, which the history's last state tells."""
        if tokens is None:
            return level_log_probs(memory.state[:, None], self.head, level, scope), []
        x, present = self.embedding(tokens), []
        bias = self.beside(memory, level - 1)
        own_bias = self.relative(torch.arange(1 - level, 1, device=tokens.device)[None])[:, 0]
        for number, layer in enumerate(self.layers):
            x, new = layer.step(x, past[number], memory.keys[number], memory.values[number], bias, own_bias)
            present.append(new)
        return level_log_probs(self.norm(x), self.head, level, scope), present


class CausalLayer(EncoderLayer):
    """An encoder's layer that also takes tokens which come after the history."""

    def candidates(
        self, x: Tensor, keys: Tensor, values: Tensor, far: Tensor, near: Tensor, packing: Packing | NoPacking
    ) -> Tensor:
        """Trees of candidates, each node seeing the history and the nodes it hangs from.

        Args:
            x: [batch · groups, nodes, d_model] or packed; a group's tree stands at one place.
            keys, values: of the history [batch, heads, length, d_head].
            far: bias towards the history [batch, heads, groups · nodes, length].
            near: bias within a tree [batch · groups, heads, nodes, nodes].
            packing: of the nodes.
        """
        attention, batch, nodes = self.attention, len(keys), near.shape[-1]

        # [batch · groups, heads, nodes, …] → [batch, heads, groups · nodes, …], and back
        def by_row(trees: Tensor) -> Tensor:
            return trees.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)

        def by_tree(rows: Tensor) -> Tensor:
            return rows.unflatten(2, (-1, nodes)).transpose(1, 2).flatten(0, 1)

        normed = self.norm1(x)
        queries = attention.split(packing.pad(attention.q(normed)))
        own_keys, own_values = attention.keys_values(normed, packing)
        scores = [by_row(queries) @ keys.transpose(2, 3) + far, by_row(queries @ own_keys.transpose(2, 3) + near)]
        to_far, to_near = torch.cat(scores, dim=-1).softmax(-1).split([keys.shape[2], nodes], dim=-1)
        mixed = by_tree(to_far @ values) + by_tree(to_near) @ own_values
        return self.feed(x + self.dropout(attention.o(packing.pack(mixed.transpose(1, 2).flatten(2)))))

    def step(self, x: Tensor, past: list[Pair], keys: Tensor, values: Tensor, bias: Tensor, own_bias: Tensor):
        """One new token a beam; `past` holds the tokens of the beam before it, as in `Attention.step`.

        Args:
            x: [batch, beams, d_model].
            past: keys and values of each earlier token [batch · beams, heads · d_head].
            keys, values, bias: of the history, as for `candidates` with one new token.
            own_bias: towards the beam's tokens [heads, len(past) + 1].
        """
        attention, (batch, beams, _) = self.attention, x.shape
        normed = self.norm1(x)
        queries, new = attention.q(normed), (attention.k(normed).flatten(0, 1), attention.v(normed).flatten(0, 1))
        own = [*past, new]
        by_head = (batch, beams, attention.heads, -1)
        far = attention.split(queries) @ keys.transpose(2, 3) + bias  # [batch, heads, beams, length]
        near = [(queries * key.view_as(queries)).view(by_head).sum(-1) for key, _ in own]
        near = torch.stack(near, dim=-1).transpose(1, 2) + own_bias[:, None]
        weights = torch.cat([far, near], dim=-1).softmax(-1)
        far, near = weights.split([keys.shape[2], len(own)], dim=-1)
        mixed = (far @ values).transpose(1, 2)  # [batch, beams, heads, d_head]
        for weight, (_, value) in zip(near.transpose(1, 2).unbind(-1), own, strict=True):
            mixed = mixed + weight[..., None] * value.view(by_head)
        return self.feed(x + self.dropout(attention.o(mixed.flatten(2)))), new
