"""Language models that read a history of token sets and generate a set at once: T5, or any causal model.

Both answer the same call. The tokens of an item share one position, and with the sparse mask they do not see each
other. A query stands at the place of the next item; it sees the history and itself, never another query, so that all
tokens of a set come out of one forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.data.dataset import PAD
from distill.decoding.tree_attention import additive
from student.models.trunk import causal_trunk

PREFIXES = 64  # that T5 reads at once
SEQUENCES = 16  # that a causal model reads at once


class T5Trunk(nn.Module):
    """T5: the encoder reads the history, the queries are the decoder's inputs.

    The encoder reads in both directions, so each target has a window of its own, with the items before it.

    Relative biases tell the decoder nothing of where an item stands, so a table of recencies, counted in items from the
    end of the history, can be added to the encoder's inputs, as in the `seq2seq` student. It starts at zero.

    Args:
        network: T5's config, as Hugging Face writes it.
        model: a pretrained T5; None: built from the config.
        recencies: size of that table, the items of the longest history; 0: none, as in the paper.
    """

    def __init__(self, network: dict[str, Any], model: Any = None, recencies: int = 0):
        from transformers import AutoConfig, T5Config, T5Model

        super().__init__()
        self.model: Any = T5Model(cast(T5Config, AutoConfig.for_model(**network))) if model is None else model
        for part in (self.model, self.model.encoder, self.model.decoder):  # tokens come as vectors: no vocabulary
            setattr(part, "shared" if part is self.model else "embed_tokens", None)
        # queries see no other query, so there is no distance between them
        self._relative_bias(self.model.decoder).requires_grad_(False)
        self.recency = nn.Embedding(recencies, self.model.config.d_model) if recencies else None
        if self.recency is not None:
            nn.init.zeros_(self.recency.weight)

    def forward(
        self, tokens: Tensor, histories: Tensor, places: Tensor, queries: Tensor, instruction: Tensor, sparse: bool
    ) -> Tensor:
        """Generate the set of tokens after each prefix that ends at a place.

        Args:
            tokens: of all items [n_items, K, dim].
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            places: True where a prefix ends [users, length].
            queries: [K, dim].
            instruction: vectors before the history [words, dim].
            sparse: tokens of an item do not see each other.

        Returns:
            The queries' last states, user by user [n, K, dim].
        """
        prefixes = cut_prefixes(histories, places)
        parts, order = [], []
        for rows, length in rows_by_length(prefixes, PREFIXES):
            parts.append(self.read(tokens, prefixes[rows, :length], queries, instruction, sparse))
            order.append(rows)
        return torch.cat(parts)[torch.cat(order).argsort()]

    def read(self, tokens: Tensor, prefixes: Tensor, queries: Tensor, instruction: Tensor, sparse: bool) -> Tensor:
        """Generate the sets after whole prefixes [n, length], in one pass of encoder and decoder → [n, K, dim]."""
        states, visible = self.encode(tokens, prefixes, instruction, sparse)
        hidden = self.model.decoder.dropout(queries.expand(len(states), -1, -1))
        alone = additive(torch.eye(len(queries), dtype=torch.bool, device=queries.device)[None], hidden.dtype)
        zeros = torch.zeros_like(alone)
        for block in self.model.decoder.block:
            hidden = block(hidden, alone, zeros, states, visible, torch.zeros_like(visible))[0]
        return self.model.decoder.dropout(self.model.decoder.final_layer_norm(hidden))

    def encode(self, tokens: Tensor, prefixes: Tensor, instruction: Tensor, sparse: bool) -> tuple[Tensor, Tensor]:
        """Encode prefixes [n, length] → states [n, width, dim], and the mask that hides padding [n, 1, 1, width]."""
        (n, length), k, words = prefixes.shape, tokens.shape[1], len(instruction)
        items = tokens[prefixes.clamp(min=0)]
        if self.recency is not None:
            after = (prefixes != PAD).sum(1, keepdim=True) - 1 - torch.arange(length, device=prefixes.device)
            items = items + self.recency(after.clamp(min=0))[:, :, None]
        inputs = torch.cat([instruction.expand(n, -1, -1), items.flatten(1, 2)], dim=1)
        positions = token_positions(words, length, k, prefixes.device)
        known = F.pad((prefixes != PAD).repeat_interleave(k, dim=1), (words, 0), value=True)
        visible = known[:, None].expand(-1, len(positions), -1)
        if sparse:
            visible = visible & ~siblings(positions, words)
        mask = additive(visible, inputs.dtype)
        bias = self.relative_bias(positions)
        hidden = self.model.encoder.dropout(inputs)
        for block in self.model.encoder.block:
            hidden = block(hidden, mask, bias)[0]
        hidden = self.model.encoder.dropout(self.model.encoder.final_layer_norm(hidden))
        return hidden, additive(known[:, None], hidden.dtype)

    def relative_bias(self, positions: Tensor) -> Tensor:
        """Compute T5's bias of attention by the distance of positions [width] → [1, heads, width, width]."""
        attention = self.model.encoder.block[0].layer[0].SelfAttention
        config = self.model.config
        buckets = attention._relative_position_bucket(
            positions[None] - positions[:, None],
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
        )
        return self._relative_bias(self.model.encoder)(buckets).permute(2, 0, 1)[None]

    @staticmethod
    def _relative_bias(stack: Any) -> nn.Embedding:
        return stack.block[0].layer[0].SelfAttention.relative_attention_bias


class CausalTrunk(nn.Module):
    """A causal language model: the queries are appended to the history.

    An item's tokens see earlier items alone, so one pass over a sequence serves all of its targets: each has its own
    queries, which see the items up to its place.

    Args:
        network: the language model's config, as Hugging Face writes it.
        model: its layers, pretrained; None: built from the config.
    """

    def __init__(self, network: dict[str, Any], model: Any = None):
        super().__init__()
        self.model: Any = causal_trunk(network, model)

    def forward(
        self, tokens: Tensor, histories: Tensor, places: Tensor, queries: Tensor, instruction: Tensor, sparse: bool
    ) -> Tensor:
        """Generate the set of tokens after each place; as `T5Trunk.forward`."""
        numbers = torch.zeros_like(places, dtype=torch.long)
        numbers[places] = torch.arange(int(places.sum()), device=places.device)  # of the sets, user by user
        parts, order = [], []
        for rows, length in rows_by_length(histories, SEQUENCES):
            queried = places[rows, :length]
            parts.append(self.read(tokens, histories[rows, :length], queried, queries, instruction, sparse))
            order.append(numbers[rows, :length][queried])
        return torch.cat(parts)[torch.cat(order).argsort()]

    def read(
        self, tokens: Tensor, histories: Tensor, places: Tensor, queries: Tensor, instruction: Tensor, sparse: bool
    ) -> Tensor:
        """Generate the sets after each place of a few sequences, in one pass; as `forward`."""
        (users, length), k, words = histories.shape, len(queries), len(instruction)
        groups = int(places.sum(1).max())
        # the trained places of each user in order, then others, whose outputs are dropped
        order = (~places).to(torch.int8).argsort(dim=1, stable=True)[:, :groups]
        items = tokens[histories.clamp(min=0)].flatten(1, 2)
        queried = queries.expand(users, groups, -1, -1).flatten(1, 2)
        inputs = torch.cat([instruction.expand(users, -1, -1), items, queried], dim=1)
        visible = query_mask(order, words, length, k, sparse)
        before = token_positions(words, length, k, histories.device).expand(users, -1)
        positions = torch.cat([before, words + 1 + order.repeat_interleave(k, dim=1)], dim=1)
        weights = next(self.model.parameters())
        uses_sdpa = self.model.config._attn_implementation == "sdpa"
        states = self.model(
            inputs_embeds=inputs.to(weights.dtype),
            attention_mask=visible[:, None] if uses_sdpa else additive(visible, weights.dtype),
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        generated = states[:, -groups * k :].unflatten(1, (groups, k)).to(inputs.dtype)
        return generated[places.gather(1, order)]


def cut_prefixes(histories: Tensor, places: Tensor) -> Tensor:
    """Cut the prefix that ends at each place.

    Args:
        histories: item numbers, padded with -1 on the right [users, length].
        places: True where a prefix ends [users, length].

    Returns:
        Padded with -1 on the right, user by user [n, longest prefix].
    """
    users, ends = places.nonzero(as_tuple=True)
    columns = torch.arange(int(ends.max()) + 1, device=histories.device)
    return histories[users, : len(columns)].masked_fill(columns > ends[:, None], PAD)


def rows_by_length(histories: Tensor, size: int) -> Iterator[tuple[Tensor, int]]:
    """Yield rows of like lengths, so that little is padded: (row numbers [at most `size`], their greatest length).

    Args:
        histories: item numbers, padded with -1 on the right [rows, length].
        size: rows at once.
    """
    lengths = (histories != PAD).sum(1).clamp(min=1)
    for rows in lengths.argsort(stable=True).split(size):
        yield rows, int(lengths[rows[-1]])


def token_positions(words: int, length: int, k: int, device: torch.device) -> Tensor:
    """Number the positions of an instruction and of items, whose k tokens share one [words + length · k]."""
    items = words + torch.arange(length, device=device).repeat_interleave(k)
    return torch.cat([torch.arange(words, device=device), items])


def siblings(positions: Tensor, words: int) -> Tensor:
    """Tell which tokens are other tokens of the same item [width, width]; the first `words` belong to no item."""
    same = positions[None] == positions[:, None]
    return same & ~torch.eye(len(positions), dtype=torch.bool, device=positions.device)


def query_mask(order: Tensor, words: int, length: int, k: int, sparse: bool) -> Tensor:
    """Tell what each token of instruction, items and queries sees.

    Args:
        order: the place of each group of queries: it sees the items up to there [users, groups].
        words: of the instruction, which see earlier words.
        length: items of a history.
        k: tokens of an item.
        sparse: tokens of an item see earlier items and themselves alone; otherwise also their siblings.

    Returns:
        bool [users, tokens, tokens], tokens = words + (length + groups) · k.
    """
    positions = token_positions(words, length, k, order.device)
    items = positions[None] <= positions[:, None]  # words see earlier words and themselves: their positions differ
    if sparse:
        items = items & ~siblings(positions, words)
    queries = order.repeat_interleave(k, dim=1)[..., None] + words >= positions
    themselves = torch.eye(queries.shape[1], dtype=torch.bool, device=order.device).expand(len(order), -1, -1)
    above = F.pad(items, (0, queries.shape[1])).expand(len(order), -1, -1)
    return torch.cat([above, torch.cat([queries, themselves], dim=2)], dim=1)
