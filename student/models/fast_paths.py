"""Fast paths of the students' networks; tests hold each of them equal to the plain computation.

- `PrefixTree`: a prefix that several candidates share is computed once.
- `attend_history_and_tree`: candidates attend to one copy of the history's keys and values.
- `attend_one_token`, `attend_history_and_one_token`: one new token per beam in beam search.
- `CachedStep`: the step function of beam search, which keeps keys and values of the beams' tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from student.models.layers import Attention
from student.models.packing import NoPacking, Packing

KeysValues = tuple[Tensor, Tensor]


class PrefixTree:
    """The tokens of candidates as one tree per row: a prefix that several candidates share is one node.

    The state after a prefix does not depend on how a candidate continues, and a teacher's beams share many prefixes.
    Under a compiler nothing is shared, so that shapes are static.

    Args:
        tokens: [batch, k, m].

    Attributes:
        tokens: of the nodes [batch, nodes]; shorter rows are padded with their first token.
        present: which nodes are no padding [batch, nodes].
        depth: position of each node in its candidates, from 0 [batch, nodes].
        visible: whether a node (second) sees another (last): itself and its ancestors [batch, nodes, nodes].
        nodes: node of each candidate's token [batch, k, m].
    """

    def __init__(self, tokens: Tensor):
        batch, k, m = tokens.shape
        place, level = torch.arange(k * m, device=tokens.device), torch.arange(m, device=tokens.device)
        if k == 1 or torch.compiler.is_compiling():
            first, number, count = place.new_ones(batch, k * m, dtype=torch.bool), place.expand(batch, -1), k * m
            self.nodes = place.view(k, m).expand(batch, -1, -1)
        else:
            same = (tokens[:, :, None] == tokens[:, None]).cumprod(-1)  # up to this token [batch, k, k, m]
            owner = (same.argmax(2) * m + level).flatten(1)  # the token of the first candidate with this prefix
            first = owner == place
            number = first.cumsum(1) - 1
            self.nodes = number.gather(1, owner).view(batch, k, m)
            count = int(number[:, -1].max()) + 1
        # which token each node is; the last column takes the repeated ones and is cut off
        source = place.new_zeros(batch, count + 1)
        source = source.scatter(1, torch.where(first, number, count), place.expand(batch, -1))[:, :count]
        self.tokens, self.depth = tokens.flatten(1).gather(1, source), source % m
        self.present = torch.arange(count, device=tokens.device) <= number[:, -1:]
        path = self.nodes.gather(1, (source // m)[..., None].expand(-1, -1, m))
        is_ancestor = level <= self.depth[..., None]
        self.visible = is_ancestor.new_zeros(batch, count, count).scatter(2, path, is_ancestor)

    def by_candidate(self, x: Tensor) -> Tensor:
        """Spread states of the nodes [batch, nodes, dim] over every candidate's tokens [batch, k, m, dim]."""
        row = torch.arange(x.shape[0], device=x.device)[:, None, None] * x.shape[1]
        return x.flatten(0, 1).index_select(0, (row + self.nodes).flatten()).view(*self.nodes.shape, -1)


def attend_history_and_tree(
    attention: Attention,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    history_bias: Tensor,
    tree_bias: Tensor,
    packing: Packing | NoPacking,
) -> Tensor:
    """Attend from trees of candidates to their history and, within each tree, to the node and its ancestors.

    Args:
        attention: the layer's.
        x: normed states of the nodes [batch · groups, nodes, d_model] or packed.
        keys, values: of the history, shared by all groups [batch, heads, length, d_head].
        history_bias: towards the history [batch, heads, groups · nodes, length].
        tree_bias: within each tree [batch · groups, heads, nodes, nodes].
        packing: of the nodes.

    Returns:
        As x.
    """
    batch, nodes = keys.shape[0], tree_bias.shape[-1]

    # [batch · groups, heads, nodes, …] → [batch, heads, groups · nodes, …], and back
    def by_row(trees: Tensor) -> Tensor:
        return trees.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)

    def by_tree(rows: Tensor) -> Tensor:
        return rows.unflatten(2, (-1, nodes)).transpose(1, 2).flatten(0, 1)

    queries = attention.split_heads(packing.pad(attention.q(x)))
    tree_keys, tree_values = attention.keys_values(x, packing)
    history_scores = by_row(queries) @ keys.transpose(2, 3) + history_bias
    tree_scores = by_row(queries @ tree_keys.transpose(2, 3) + tree_bias)
    weights = torch.cat([history_scores, tree_scores], dim=-1).softmax(-1)
    history_weights, tree_weights = weights.split([keys.shape[2], nodes], dim=-1)
    mixed = by_tree(history_weights @ values) + by_tree(tree_weights) @ tree_values
    return attention.o(packing.pack(mixed.transpose(1, 2).flatten(2)))


def attend_one_token(
    attention: Attention, x: Tensor, past: list[KeysValues], bias: Tensor
) -> tuple[Tensor, KeysValues]:
    """Attend from one new token per row to the row's few earlier tokens and to itself.

    Sums of products, token by token: a matrix product per row costs more in calls than in arithmetic, and a cache in
    one piece would be copied at every step.

    Args:
        attention: the layer's.
        x: normed states [rows, d_model].
        past: keys and values of the row's earlier tokens, each [rows, heads · d_head].
        bias: [heads, len(past) + 1].

    Returns:
        [rows, d_model], and keys and values of the new token.
    """
    new = (attention.k(x), attention.v(x))
    if not past:
        return attention.o(new[1]), new  # the only token takes all the weight
    queries, by_head = attention.q(x), (x.shape[0], attention.heads, -1)
    scores = [(queries * key).view(by_head).sum(-1) for key, _ in (*past, new)]
    weights = (torch.stack(scores, dim=-1) + bias).softmax(-1)
    mixed = sum(
        weight[..., None] * value.view(by_head)
        for weight, (_, value) in zip(weights.unbind(-1), (*past, new), strict=True)
    )
    return attention.o(mixed.flatten(1)), new


def attend_history_and_one_token(
    attention: Attention,
    x: Tensor,
    past: list[KeysValues],
    keys: Tensor,
    values: Tensor,
    history_bias: Tensor,
    beam_bias: Tensor,
) -> tuple[Tensor, KeysValues]:
    """Attend from one new token per beam to the history, to the beam's earlier tokens and to itself.

    Args:
        attention: the layer's.
        x: normed states [batch, beams, d_model].
        past: keys and values of the beam's earlier tokens, each [batch · beams, heads · d_head].
        keys, values: of the history [batch, heads, length, d_head].
        history_bias: [batch, heads, 1, length].
        beam_bias: towards the beam's tokens [heads, len(past) + 1].

    Returns:
        [batch, beams, d_model], and keys and values of the new token as in `past`.
    """
    batch, beams, _ = x.shape
    by_head = (batch, beams, attention.heads, -1)
    queries, new = attention.q(x), (attention.k(x).flatten(0, 1), attention.v(x).flatten(0, 1))
    beam_tokens = [*past, new]
    history_scores = attention.split_heads(queries) @ keys.transpose(2, 3) + history_bias  # [.., heads, beams, length]
    beam_scores = [(queries * key.view_as(queries)).view(by_head).sum(-1) for key, _ in beam_tokens]
    beam_scores = torch.stack(beam_scores, dim=-1).transpose(1, 2) + beam_bias[:, None]
    weights = torch.cat([history_scores, beam_scores], dim=-1).softmax(-1)
    history_weights, beam_weights = weights.split([keys.shape[2], len(beam_tokens)], dim=-1)
    mixed = (history_weights @ values).transpose(1, 2)  # [batch, beams, heads, d_head]
    for weight, (_, value) in zip(beam_weights.transpose(1, 2).unbind(-1), beam_tokens, strict=True):
        mixed = mixed + weight[..., None] * value.view(by_head)
    return attention.o(mixed.flatten(2)), new


class CachedStep:
    """The step function of a student for `beam_search`: one new codeword per beam.

    It keeps keys and values of the beams' tokens and gathers them by parent; the history's are never copied.

    Args:
        model: has `next_codeword`.
        encoded: histories, from the model's `encode`.
        layers: number of layers that keep keys and values of the beams' tokens.
        scope: softmax over the "level"'s codewords, or over "all" levels'.
    """

    def __init__(self, model: nn.Module, encoded, layers: int, scope: str = "level"):
        self.model, self.encoded, self.scope = model, encoded, scope
        self.past: list[list[KeysValues]] = [[] for _ in range(layers)]  # layer by layer, token by token
        self.beams = 1

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        """Return log-probabilities of the level's codewords; see `beam_search.Step`."""
        tokens = None
        if level > 0:
            tokens = codes + 1 + (level - 1) * self.model.config.codebook_size
            rows = torch.arange(parents.shape[0], device=parents.device)[:, None] * self.beams + parents
            rows, self.beams = rows.flatten(), parents.shape[1]
            self.past = [
                [(key.index_select(0, rows), value.index_select(0, rows)) for key, value in pairs]
                for pairs in self.past
            ]
        log_probs, present = self.model.next_codeword(level, tokens, self.past, self.encoded, self.scope)
        for pairs, new in zip(self.past, present, strict=False):
            pairs.append(new)
        return log_probs
