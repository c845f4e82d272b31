"""Building blocks of the students' networks: T5's attention, feed-forward and relative positions (Raffel et al., 2020).

RMS norms without means, no biases in the linear maps, and attention without 1/√d scaling: the initialisation of the
queries carries it. `packing` arguments change the speed, not the result (packing.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.runtime.errors import UserError
from student.models.codeword_tables import TIED_STD
from student.models.packing import NO_PACKING, NoPacking, Packing


class Attention(nn.Module):
    """Multi-head attention without scaling and without biases."""

    def __init__(self, d_model: int, heads: int, d_head: int):
        super().__init__()
        self.heads, inner = heads, heads * d_head
        self.q, self.k = nn.Linear(d_model, inner, bias=False), nn.Linear(d_model, inner, bias=False)
        self.v, self.o = nn.Linear(d_model, inner, bias=False), nn.Linear(inner, d_model, bias=False)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor, packing: Packing | NoPacking = NO_PACKING
    ) -> Tensor:
        """Attend from x to keys and values.

        Args:
            x: [batch, length, d_model], or packed.
            keys, values: [batch, heads, keys, d_head].
            bias: added to the scores [batch or 1, heads or 1, length or 1, keys].
            packing: of x.
        """
        queries = self.split_heads(packing.pad(self.q(x)))
        mixed = attend(queries, keys, values, bias)
        return self.o(packing.pack(mixed.transpose(1, 2).flatten(2)))

    def keys_values(self, x: Tensor, packing: Packing | NoPacking = NO_PACKING) -> tuple[Tensor, Tensor]:
        """Compute keys and values of x [batch, length, d_model] or packed, each [batch, heads, length, d_head]."""
        return self.split_heads(packing.pad(self.k(x))), self.split_heads(packing.pad(self.v(x)))

    def split_heads(self, x: Tensor) -> Tensor:
        """Split heads: [batch, length, heads · d_head] → [batch, heads, length, d_head]."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Mix values by softmax(queries · keys + bias), without scaling; all are [batch, heads, length, d_head].

    On CPUs in bf16 by plain products: the fused kernel takes up to twice as long there (torch 2.13, avx512_bf16).
    """
    if queries.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        weights = (queries @ keys.transpose(2, 3) + bias).softmax(-1)
        return weights.to(values.dtype) @ values
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=1.0)


class FeatureHead(nn.Linear):
    """Project states of several layers, each by its own map: [..., layers, d_model] → [..., layers, features]."""

    def __init__(self, d_model: int, features: int, layers: int):
        super().__init__(d_model, layers * features, bias=False)
        self.layers = layers

    def forward(self, states: Tensor) -> Tensor:
        """As the class says."""
        return torch.einsum("...kd,kfd->...kf", states, self.weight.unflatten(0, (self.layers, -1)))


class Featured(nn.Module):
    """A network that may guess its teacher's states while it trains (`feature_head`), for feature distillation.

    Attributes:
        feature_head: projection of the states; None where there are no features to learn.
        features: the guesses at the targets of the last forward pass in training [n, levels, layers, features].
    """

    feature_head: FeatureHead | None  # no default: a class's attribute would hide the module
    features: Tensor | None = None
    _inner_layers: tuple[int, ...] = ()

    def add_feature_head(self, d_model: int, features: int, layers: int, depth: int) -> None:
        """Add the projections of the states that are compared with the teacher's; none without features.

        Args:
            d_model: size of a state.
            features: numbers of each of the teacher's states; 0: none are learnt.
            layers: of the teacher, whose states are learnt.
            depth: layers of this network.

        Raises:
            UserError: it has too few.
        """
        self.feature_head = FeatureHead(d_model, features, layers) if features else None
        if features:
            self._inner_layers = compared_layers(layers, depth)[:-1]

    @property
    def inner_layers(self) -> tuple[int, ...]:
        """Layers before the last, from 1, whose states are compared with the teacher's in the present mode."""
        return self._inner_layers if self.training else ()

    def guess_features(self, states: Sequence[Tensor]) -> None:
        """Keep the guesses from the states that predict the targets' codewords.

        Args:
            states: after the `inner_layers` and after the last, each [n, levels, d_model].
        """
        if self.feature_head is not None and self.training:
            self.features = self.feature_head(torch.stack(list(states), dim=2))

    def take_features(self) -> Tensor | None:
        """Return the guesses and forget them: a network that holds a graph cannot be copied."""
        features, self.features = self.features, None
        return features


def compared_layers(layers: int, depth: int) -> tuple[int, ...]:
    """Choose a network's layers that are compared with the teacher's: evenly spread, the last with the last.

    They end blocks of layers, as in SLMRec (Xu et al., ICLR 2025): 2 of 5 layers are 2 and 5.

    Args:
        layers: of the teacher, whose states are stored.
        depth: layers of the network.

    Raises:
        UserError: it has too few.
    """
    if layers > depth:
        raise UserError(
            f"The soft labels hold the states of {layers} layers of the teacher, and this student has {depth} over "
            "codewords; export with fewer --feature_layers, or take a deeper student."
        )
    return tuple(number * depth // layers for number in range(1, layers + 1))


class FeedForward(nn.Module):
    """Linear, ReLU, linear. No dropout between them: on CPUs its random numbers cost as much as the layer."""

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.wi, self.wo = nn.Linear(d_model, d_ff, bias=False), nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token [..., d_model]."""
        return self.wo(F.relu(self.wi(x)))


class SelfAttentionLayer(nn.Module):
    """Self-attention and feed-forward, each with a norm before and a residual connection after.

    The bias decides which tokens see each other: all of them in an encoder, the earlier ones in a causal decoder.

    Args:
        c: a network's config: d_model, d_ff, heads, d_head, dropout.
    """

    def __init__(self, c):
        super().__init__()
        self.attention, self.ff = Attention(c.d_model, c.heads, c.d_head), FeedForward(c.d_model, c.d_ff)
        self.norm1, self.norm2 = nn.RMSNorm(c.d_model, eps=1e-6), nn.RMSNorm(c.d_model, eps=1e-6)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self, x: Tensor, bias: Tensor, packing: Packing | NoPacking = NO_PACKING
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Transform x [batch, length, d_model] or packed; also return its keys and values, for tokens that follow."""
        normed = self.norm1(x)
        keys, values = self.attention.keys_values(normed, packing)
        x = x + self.dropout(self.attention(normed, keys, values, bias, packing))
        return self.feed_forward(x), keys, values

    def feed_forward(self, x: Tensor) -> Tensor:
        """Apply norm, feed-forward and residual connection."""
        return x + self.dropout(self.ff(self.norm2(x)))


def among_all(codes: Tensor, codebook_size: int) -> Tensor:
    """Number codewords across all levels: codes [..., levels] + level · codebook_size."""
    return codes + torch.arange(codes.shape[-1], device=codes.device) * codebook_size


def network_scope(scope: str) -> str:
    """Return the networks' softmax for a student's: networks know no trie, which renormalises their "level"."""
    return "level" if scope == "trie" else scope


def history_tokens(codes: Tensor, codebook_size: int) -> Tensor:
    """Turn histories' codewords [batch, items, levels] into tokens, 0 where padded [batch, items · levels]."""
    return torch.where(codes >= 0, among_all(codes, codebook_size) + 1, 0).flatten(1)


def prefix_tokens(items: Tensor, codebook_size: int) -> Tensor:
    """Turn items' codewords into tokens, without the last, which nothing follows: [..., levels] → [..., levels - 1]."""
    return among_all(items[..., :-1], codebook_size) + 1


def padding_mask(present: Tensor, dtype: torch.dtype) -> Tensor:
    """Build an additive attention mask from `present` [batch, length]: the lowest value at padding, 0 elsewhere.

    Returns [batch, 1, 1, length].
    """
    mask = torch.zeros(present.shape, device=present.device, dtype=dtype)
    return mask.masked_fill(~present, torch.finfo(dtype).min)[:, None, None, :]


def codeword_logits(states: Tensor, head: Tensor) -> Tensor:
    """Compute logits [..., codewords] of states [..., d_model] with a head [codewords, d_model].

    Under autocast in float32 all the same: it is a small part of the work, and logits rounded to bfloat16 (by .03 at 8)
    would reorder what ranks close together.
    """
    with torch.autocast(states.device.type, enabled=False):
        return (states.to(head.dtype) @ head.T).float()


def level_logits(states: Tensor, head: Tensor) -> Tensor:
    """Compute each level's logits [..., levels, codewords] of states [..., levels, d_model]; precision as above."""
    with torch.autocast(states.device.type, enabled=False):
        return torch.einsum("...ld,lnd->...ln", states.to(head.dtype), head).float()


def level_log_probs(states: Tensor, head: Tensor, level: int, scope: str) -> Tensor:
    """Compute the log-probabilities of one level's codewords [..., codebook_size], or of all codewords.

    Args:
        states: [..., d_model].
        head: [levels, codebook_size, d_model].
        level: of the codewords.
        scope: softmax over the "level"'s codewords (only its part of the head is computed), or over "all" levels';
            "whole" is that of "all", and returns the codewords of all levels [..., levels · codebook_size].
    """
    if scope == "level":
        return codeword_logits(states, head[level]).log_softmax(-1)
    logits = codeword_logits(states, head.flatten(0, 1))
    if scope == "whole":
        return logits.log_softmax(-1)
    return logits.unflatten(-1, head.shape[:2])[..., level, :] - logits.logsumexp(-1, keepdim=True)


def forced_log_probs(states: Tensor, head: Tensor, scope: str) -> Tensor:
    """Compute the log-probabilities of every codeword at every position of candidates.

    Args:
        states: before each codeword [batch, k, levels, d_model].
        head: [levels, codebook_size, d_model].
        scope: softmax over the "level"'s codewords, or over "all" levels'.

    Returns:
        [batch, k, levels, codebook_size], or [..., levels · codebook_size] for "all".
    """
    by_level = scope == "level"
    logits = level_logits(states, head) if by_level else codeword_logits(states, head.flatten(0, 1))
    return logits.log_softmax(-1)


def chosen_log_probs(states: Tensor, head: Tensor, codes: Tensor, scope: str, allowed: Tensor | None = None) -> Tensor:
    """Compute the log-probabilities of given codewords at the last positions of items.

    Args:
        states: before each of these codewords [..., m, d_model].
        head: [levels, codebook_size, d_model].
        codes: of the last m levels [..., m].
        scope: as for `forced_log_probs`.
        allowed: the codewords of the softmax, bool [..., m, codebook_size]; None: all of the scope.

    Returns:
        [..., m].
    """
    levels, last = len(head), codes.shape[-1]
    if scope == "level":
        logits = level_logits(states, head[levels - last :])
    else:
        logits = codeword_logits(states, head.flatten(0, 1))
        codes = codes + torch.arange(levels - last, levels, device=codes.device) * head.shape[1]
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.log_softmax(-1).gather(-1, codes[..., None]).squeeze(-1)


def candidate_log_probs(
    first: Tensor, states: Tensor, head: Tensor, items: Tensor, scope: str, allowed: Tensor | None = None
) -> Tensor:
    """Compute the log-probabilities of the codewords of candidates that share one history.

    Args:
        first: state before the candidates, the same for all of them [..., d_model].
        states: after each codeword but the last [..., k, levels - 1, d_model].
        head: [levels, codebook_size, d_model].
        items: codewords [..., k, levels].
        scope: as for `forced_log_probs`.
        allowed: the codewords of the softmax at each level, bool [..., k, levels, codebook_size]; None: all of the
            scope.

    Returns:
        [..., k, levels].
    """
    first_level = level_log_probs(first, head, 0, scope)
    if allowed is not None:  # the same for all candidates
        first_level = first_level.masked_fill(~allowed[..., 0, 0, :], -torch.inf).log_softmax(-1)
        allowed = allowed[..., 1:, :]
    first_level = first_level.gather(-1, items[..., 0])
    return torch.cat([first_level[..., None], chosen_log_probs(states, head, items[..., 1:], scope, allowed)], dim=-1)


def initialise(module: nn.Module, d_model: int, d_ff: int, heads: int, d_head: int, tied: bool) -> None:
    """Initialise as T5 with factor 1: queries carry the 1/√d that the attention leaves out; tied tables start small."""
    special = {"q": (d_model * d_head) ** -0.5, "o": (heads * d_head) ** -0.5, "wo": d_ff**-0.5}
    special["projection"] = 1.0
    special["embedding"] = TIED_STD if tied else 1.0
    special["recency"] = TIED_STD * d_model**0.5 if tied else 1.0  # as large as a codeword that is read
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            layer = name.removesuffix(".weight").rsplit(".", 1)[-1]
            nn.init.normal_(parameter, std=special.get(layer, d_model**-0.5))


def relative_buckets(distance: Tensor, both_ways: bool, buckets: int, max_distance: int) -> Tensor:
    """Return T5's bucket of each key-minus-query distance: exact when near, logarithmic when far."""
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
