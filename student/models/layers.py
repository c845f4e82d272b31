"""What the students' networks are made of: T5's attention, feed-forward and relative positions (Raffel et al., 2020).

RMS norms without means, no biases in the linear maps, attention without 1/√d scaling: the initialisation of the queries
carries it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Pair = tuple[Tensor, Tensor]  # keys and values


class Packing:
    """Which places of padded sequences hold tokens, so that linear maps can leave the padding out.

    Args:
        tokens: vocabulary numbers, 0 where padded [batch, length].
    """

    def __init__(self, tokens: Tensor):
        self.shape, self.places = tokens.shape, tokens.flatten().nonzero().squeeze(1)

    def pack(self, x: Tensor) -> Tensor:
        """[batch, length, any] → [1, tokens, any]."""
        return x.flatten(0, 1)[self.places][None]

    def pad(self, x: Tensor) -> Tensor:
        """[1, tokens, any] → [batch, length, any], zeros at the padding."""
        padded = x.new_zeros(self.shape.numel(), x.shape[-1])
        return padded.index_copy_(0, self.places, x[0]).view(*self.shape, -1)


class NoPacking:
    """As `Packing` where the padding is computed along: shapes stay static, as compiled graphs want them."""

    def pack(self, x: Tensor) -> Tensor:
        return x

    def pad(self, x: Tensor) -> Tensor:
        return x


PLAIN = NoPacking()


class Prefixes:
    """The tokens of candidates as one tree a row: a prefix that several of them begin with stands there once.

    What comes of a prefix does not depend on how candidates go on, and a teacher's beams share many. Under a compiler
    nothing is shared, so that shapes stay static.

    Args:
        tokens: vocabulary numbers [batch, k, m].

    Attributes:
        tokens: of the tree [batch, nodes], shorter rows padded with their first.
        here: which nodes are no padding [batch, nodes].
        depth: place of each within its candidates, from 0 [batch, nodes].
        sees: whether a node (second) sees another (last): itself and those it hangs from [batch, nodes, nodes].
        nodes: of each candidate's tokens [batch, k, m].
    """

    def __init__(self, tokens: Tensor):
        batch, k, m = tokens.shape
        place, level = torch.arange(k * m, device=tokens.device), torch.arange(m, device=tokens.device)
        if k == 1 or torch.compiler.is_compiling():
            first, number, count = place.new_ones(batch, k * m, dtype=torch.bool), place.expand(batch, -1), k * m
            self.nodes = place.view(k, m).expand(batch, -1, -1)
        else:
            same = (tokens[:, :, None] == tokens[:, None]).cumprod(-1)  # up to this token [batch, k, k, m]
            owner = (same.argmax(2) * m + level).flatten(1)  # the first candidate's with this prefix
            first = owner == place
            number = first.cumsum(1) - 1
            self.nodes = number.gather(1, owner).view(batch, k, m)
            count = int(number[:, -1].max()) + 1
        source = place.new_zeros(batch, count + 1)  # whose token; the last column takes what is there already
        source = source.scatter(1, torch.where(first, number, count), place.expand(batch, -1))[:, :count]
        self.tokens, self.depth = tokens.flatten(1).gather(1, source), source % m
        self.here = torch.arange(count, device=tokens.device) <= number[:, -1:]
        path = self.nodes.gather(1, (source // m)[..., None].expand(-1, -1, m))
        seen = level <= self.depth[..., None]
        self.sees = seen.new_zeros(batch, count, count).scatter(2, path, seen)

    def each(self, x: Tensor) -> Tensor:
        """From nodes [batch, nodes, any] to every candidate's tokens [batch, k, m, any]."""
        row = torch.arange(len(x), device=x.device)[:, None, None] * x.shape[1]
        return x.flatten(0, 1).index_select(0, (row + self.nodes).flatten()).view(*self.nodes.shape, -1)


class Attention(nn.Module):
    """Multi-head attention without scaling and without biases."""

    def __init__(self, d_model: int, heads: int, d_head: int):
        super().__init__()
        self.heads, inner = heads, heads * d_head
        self.q, self.k = nn.Linear(d_model, inner, bias=False), nn.Linear(d_model, inner, bias=False)
        self.v, self.o = nn.Linear(d_model, inner, bias=False), nn.Linear(inner, d_model, bias=False)

    def split(self, x: Tensor) -> Tensor:
        """[batch, length, heads · d_head] → [batch, heads, length, d_head]."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def keys_values(self, x: Tensor, packing: Packing | NoPacking = PLAIN) -> tuple[Tensor, Tensor]:
        """Keys and values of x [batch, length, d_model] or packed, each [batch, heads, length, d_head]."""
        return self.split(packing.pad(self.k(x))), self.split(packing.pad(self.v(x)))

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor, packing: Packing | NoPacking = PLAIN
    ) -> Tensor:
        """Attend from x [batch, length, d_model] or packed, with an additive bias [batch or 1, heads or 1, length or 1,
        keys]."""
        queries = self.split(packing.pad(self.q(x)))
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=1.0)
        return self.o(packing.pack(mixed.transpose(1, 2).flatten(2)))

    def step(self, x: Tensor, past: list[Pair], bias: Tensor) -> tuple[Tensor, Pair]:
        """Attend from one new token a row to the few before it and to itself.

        Sums of products, token by token: a matrix product a row costs more in calls than in arithmetic, and a cache in
        one piece would be copied at every step.

        Args:
            x: [rows, d_model].
            past: keys and values of the row's earlier tokens, a pair a token, each [rows, heads · d_head].
            bias: [heads, len(past) + 1].

        Returns:
            [rows, d_model], and the pair of the new token.
        """
        new = (self.k(x), self.v(x))
        if not past:
            return self.o(new[1]), new  # nothing else to look at
        queries, by_head = self.q(x), (len(x), self.heads, -1)
        scores = [(queries * key).view(by_head).sum(-1) for key, _ in (*past, new)]
        weights = (torch.stack(scores, dim=-1) + bias).softmax(-1)
        mixed = sum(
            weight[..., None] * value.view(by_head)
            for weight, (_, value) in zip(weights.unbind(-1), (*past, new), strict=True)
        )
        return self.o(mixed.flatten(1)), new


class FeedForward(nn.Module):
    """Linear, ReLU, linear. No dropout between them: on CPUs its random numbers cost as much as the layer."""

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.wi, self.wo = nn.Linear(d_model, d_ff, bias=False), nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.relu(self.wi(x)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with norm before and residual after; `c` is a network's config."""

    def __init__(self, c):
        super().__init__()
        self.attention, self.ff = Attention(c.d_model, c.heads, c.d_head), FeedForward(c.d_model, c.d_ff)
        self.norm1, self.norm2 = nn.RMSNorm(c.d_model, eps=1e-6), nn.RMSNorm(c.d_model, eps=1e-6)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, bias: Tensor, packing: Packing | NoPacking = PLAIN) -> tuple[Tensor, Tensor, Tensor]:
        """x [batch, length, d_model] or packed → the same, and the keys and values that later tokens may look at."""
        normed = self.norm1(x)
        keys, values = self.attention.keys_values(normed, packing)
        return self.feed(x + self.dropout(self.attention(normed, keys, values, bias, packing))), keys, values

    def feed(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.ff(self.norm2(x)))


class CachedStep:
    """`beam.Step` of a student: one new codeword a beam, the cache of the new tokens gathered by parent.

    Args:
        model: has `next_codeword`.
        memory: of its `encode`.
        layers: that keep keys and values of the new tokens.
        scope: scores over the "level"'s codewords, or over "all" levels'.
    """

    def __init__(self, model: nn.Module, memory, layers: int, scope: str = "level"):
        self.model, self.memory, self.scope = model, memory, scope
        self.past: list[list[Pair]] = [[] for _ in range(layers)]  # layer by layer, token by token
        self.beams = 1

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        tokens = None
        if level > 0:
            tokens = codes + 1 + (level - 1) * self.model.config.codebook_size
            rows = torch.arange(len(parents), device=parents.device)[:, None] * self.beams + parents
            rows, self.beams = rows.flatten(), parents.shape[1]
            self.past = [
                [(key.index_select(0, rows), value.index_select(0, rows)) for key, value in pairs]
                for pairs in self.past
            ]
        log_probs, present = self.model.next_codeword(level, tokens, self.past, self.memory, self.scope)
        for pairs, new in zip(self.past, present, strict=False):
            pairs.append(new)
        return log_probs


def among_all(codes: Tensor, codebook_size: int) -> Tensor:
    """Codewords [..., levels] as numbers among those of all levels."""
    return codes + torch.arange(codes.shape[-1], device=codes.device) * codebook_size


def history_tokens(codes: Tensor, codebook_size: int) -> Tensor:
    """Vocabulary numbers of histories' codewords [batch, items, levels], 0 where padded [batch, items · levels]."""
    return torch.where(codes >= 0, among_all(codes, codebook_size) + 1, 0).flatten(1)


def packing_of(tokens: Tensor) -> Packing | NoPacking:
    """Packing on a CPU, where arithmetic is dear and shapes are free, if there is padding: zero or false."""
    if tokens.device.type != "cpu" or torch.compiler.is_compiling() or bool((tokens > 0).all()):
        return PLAIN
    return Packing(tokens)


def padding_mask(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask that hides padding [batch, 1, 1, length]."""
    mask = torch.zeros(tokens.shape, device=tokens.device, dtype=dtype)
    return mask.masked_fill(tokens == 0, torch.finfo(dtype).min)[:, None, None, :]


def level_log_probs(states: Tensor, head: Tensor, level: int, scope: str) -> Tensor:
    """Log-probabilities of one level's codewords [..., codebook_size].

    Args:
        states: [..., d_model].
        head: [levels, codebook_size, d_model].
        level: which one.
        scope: softmax over the "level"'s codewords: only its part of the head is computed; or over "all" levels'.
    """
    if scope == "level":
        return (states @ head[level].T).float().log_softmax(-1)
    logits = (states @ head.flatten(0, 1).T).float()
    return logits.unflatten(-1, head.shape[:2])[..., level, :] - logits.logsumexp(-1, keepdim=True)


def forced_log_probs(states: Tensor, head: Tensor, scope: str) -> Tensor:
    """Log-probabilities at every position of candidates.

    Args:
        states: [batch, k, levels, d_model].
        head: [levels, codebook_size, d_model].
        scope: softmax over the "level"'s codewords, or over "all" levels'.

    Returns:
        [batch, k, levels, codebook_size], or [..., levels · codebook_size] for "all".
    """
    own = scope == "level"
    logits = torch.einsum("bkld,lnd->bkln", states, head) if own else states @ head.flatten(0, 1).T
    return logits.float().log_softmax(-1)


def chosen_log_probs(states: Tensor, head: Tensor, codes: Tensor, scope: str) -> Tensor:
    """Log-probabilities of given codewords at the last positions of items.

    Args:
        states: before each of these codewords [..., m, d_model].
        head: [levels, codebook_size, d_model].
        codes: of the last m levels [..., m].
        scope: as for `forced_log_probs`.

    Returns:
        [..., m].
    """
    levels, last = len(head), codes.shape[-1]
    if scope == "level":
        logits = torch.einsum("...ld,lnd->...ln", states, head[levels - last :])
    else:
        logits = states @ head.flatten(0, 1).T
        codes = codes + torch.arange(levels - last, levels, device=codes.device) * head.shape[1]
    return logits.float().log_softmax(-1).gather(-1, codes[..., None]).squeeze(-1)


def initialise(module: nn.Module, d_model: int, d_ff: int, heads: int, d_head: int) -> None:
    """T5's initialisation with factor 1: queries carry the 1/√d that the attention leaves out."""
    special = {"q": (d_model * d_head) ** -0.5, "o": (heads * d_head) ** -0.5, "wo": d_ff**-0.5}
    special["embedding"] = special["recency"] = 1.0
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            layer = name.removesuffix(".weight").rsplit(".", 1)[-1]
            nn.init.normal_(parameter, std=special.get(layer, d_model**-0.5))


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
