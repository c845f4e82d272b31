"""The `causal` student: a decoder-only language model of codewords.

It has the interface of `seq2seq`: `encode` a history, then `log_probs` of candidates or a `step` for beam search. All
candidates and beams of a user read one copy of the history's keys and values. `one_pass` trains all prefixes of a
sequence at once: positions are relative and no token sees a later one, so the results equal one pass per prefix.
The text of an item joins its last token: an earlier one would tell the text of a target to its other codewords.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from student.models.codeword_tables import CodewordTables
from student.models.fast_paths import (
    CachedStep,
    KeysValues,
    PrefixTree,
    attend_history_and_one_token,
    attend_history_and_tree,
)
from student.models.item_text import HistoryText, TextConfig, last_token
from student.models.layers import (
    Featured,
    SelfAttentionLayer,
    candidate_log_probs,
    forced_log_probs,
    history_tokens,
    initialise,
    level_log_probs,
    padding_mask,
    prefix_tokens,
    relative_buckets,
)
from student.models.packing import NoPacking, Packing, choose_packing

PRESETS: dict[str, dict[str, int]] = {  # parameters as in seq2seq's preset of the same name
    "demo": {"d_model": 64, "d_ff": 256, "heads": 4, "d_head": 16, "layers": 5},
    "small": {"d_model": 128, "d_ff": 512, "heads": 4, "d_head": 32, "layers": 5},
    "tiger-4m": {"d_model": 192, "d_ff": 1024, "heads": 6, "d_head": 64, "layers": 6},
    "lohrec-13m": {"d_model": 384, "d_ff": 1024, "heads": 6, "d_head": 64, "layers": 9},
}


@dataclass(frozen=True)
class CausalConfig:
    """Sizes of the network; `levels` and `codebook_size` are the semantic IDs'."""

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
    text: TextConfig | None = None
    features: int = 0
    feature_layers: int = 1
    tied: bool = False


class EncodedHistory(NamedTuple):
    """A batch of histories after one pass of the decoder.

    Attributes:
        keys, values: one per layer, each [batch, heads, length, d_head].
        mask: additive mask of the padding [batch, 1, 1, length].
        lengths: tokens of each history [batch].
        last_state: state after each history's last token, which predicts the first codeword [batch, d_model].
        inner_states: in training, the states there after the network's `inner_layers`, each [batch, d_model].
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor
    lengths: Tensor
    last_state: Tensor
    inner_states: Sequence[Tensor] = ()


class Positions(NamedTuple):
    """What `one_pass` scores.

    Attributes:
        rows, places: item `places[i]` of sequence `rows[i]` is a target, places from 1 [n].
        candidate_places: places of sequence b's items that groups of candidates replace, -1 for none [batch, groups].
        allowed: the codewords of the candidates' softmax, bool [batch, groups, k, levels, codebook_size]; None: all of
            the scope.
    """

    rows: Tensor
    places: Tensor
    candidate_places: Tensor | None = None
    allowed: Tensor | None = None


class Causal(Featured, CodewordTables):
    """T5's decoder layers without cross-attention: every token sees itself and those before it."""

    def __init__(self, config: CausalConfig):
        super().__init__()
        self.config = config
        c = config
        self.add_tables(c.levels, c.codebook_size, c.d_model, c.tied)
        self.text = HistoryText(c.text, c.d_model, c.codebook_size) if c.text else None
        self.layers = nn.ModuleList(CausalLayer(c) for _ in range(c.layers))
        self.bias = nn.Embedding(c.buckets, c.heads)
        self.norm = nn.RMSNorm(c.d_model, eps=1e-6)
        self.dropout = nn.Dropout(c.dropout)
        self.add_feature_head(c.d_model, c.features, c.feature_layers, c.layers)
        initialise(self, c.d_model, c.d_ff, c.heads, c.d_head, c.tied)

    def forward(self, history: Tensor, items: Tensor | None, scope: str = "level", positions: Positions | None = None):
        """Score candidates after histories by `log_probs`, or whole sequences by `one_pass` (`positions` given)."""
        if positions is not None:
            return self.one_pass(history, items, positions, scope)
        return self.log_probs(self.encode(history), items, scope)

    def decode(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Run the layers over embedded tokens, each seeing itself and those before it.

        Padding is on the right, where no real token sees it.

        Args:
            x: [batch, length, d_model].

        Returns:
            States after each token, of the `inner_layers` and, last, of the whole decoder [batch, length, d_model];
            keys and values, one per layer [batch, heads, length, d_head].
        """
        bias = self.causal_bias(x.shape[1], self.bias)
        x = self.dropout(x)
        keys, values, states = [], [], []
        for number, layer in enumerate(self.layers, 1):
            x, layer_keys, layer_values = layer(x, bias)
            keys.append(layer_keys)
            values.append(layer_values)
            if number in self.inner_layers:
                states.append(x)
        return [*states, self.dropout(self.norm(x))], keys, values

    def encode(self, codes: Tensor) -> EncodedHistory:
        """Encode histories.

        Args:
            codes: codewords of the items, oldest first; whole items padded with -1 on the right [batch, items, levels].
        """
        tokens = history_tokens(codes, self.config.codebook_size)
        states, keys, values = self.decode(self.embed_history(codes, tokens))
        lengths = (tokens > 0).sum(1)
        last = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, self.config.d_model)
        *inner, last_state = (each.gather(1, last).squeeze(1) for each in states)
        return EncodedHistory(keys, values, padding_mask(tokens > 0, last_state.dtype), lengths, last_state, inner)

    def embed_history(self, codes: Tensor, tokens: Tensor) -> Tensor:
        """Embed histories, with the text of each item at its last token.

        Args:
            codes: as for `encode`.
            tokens: of these codewords [batch, items · levels].

        Returns:
            [batch, items · levels, d_model].
        """
        embedded = self.embed(tokens)
        return embedded if self.text is None else embedded + last_token(self.text(codes), self.config.levels)

    def log_probs(self, encoded: EncodedHistory, items: Tensor, scope: str = "level") -> Tensor:
        """Compute the log-probabilities of every codeword at every position of candidates, by teacher forcing.

        Args:
            encoded: histories, from `encode`.
            items: codewords of k candidates [batch, k, levels].
            scope: softmax over the "level"'s codewords, or over "all" levels'.

        Returns:
            [batch, k, levels, codebook_size], or [..., levels · codebook_size] for "all".
        """
        after = self.continue_history(items[:, None], encoded.keys, encoded.values, encoded.lengths[:, None])
        before = [*encoded.inner_states, encoded.last_state]
        firsts = [each[:, None, None].expand(-1, items.shape[1], -1, -1) for each in before]
        states = [torch.cat([first, each[:, 0]], dim=2) for first, each in zip(firsts, after, strict=True)]
        self.guess_features([each[:, 0] for each in states])
        return forced_log_probs(states[-1], self.output_table(), scope)

    def one_pass(
        self, sequences: Tensor, items: Tensor | None, positions: Positions, scope: str = "level"
    ) -> tuple[Tensor, Tensor | None]:
        """Score all targets of users' sequences in one pass, and candidates in place of some of them.

        Args:
            sequences: codewords of the items, oldest first, targets among them; whole items padded with -1 on the right
                [batch, items, levels].
            items: codewords of candidates at the `candidate_places` [batch, groups, k, levels]; None: no candidates.
            positions: which items are targets, and the places of the candidates.
            scope: softmax over the "level"'s codewords, or over "all" levels'.

        Returns:
            Log-probabilities at each target's positions [n, levels, V], V as for `log_probs`; log-probabilities of the
            candidates' codewords [batch, groups, k, levels], undefined where the place is -1.
        """
        levels, (rows, places, candidate_places, allowed) = self.config.levels, positions
        tokens = history_tokens(sequences, self.config.codebook_size)
        embedded = self.embed_history(sequences, tokens)[:, :-1]  # nothing follows the last codeword
        states, keys, values = self.decode(embedded)
        width, flat = embedded.shape[1], [each.flatten(0, 1) for each in states]
        before_target = rows * width + places * levels - 1  # the state that predicts a target's first codeword
        target_places = before_target[:, None] + torch.arange(levels, device=embedded.device)
        target_states = [each[target_places] for each in flat]
        self.guess_features(target_states)
        target_log_probs = forced_log_probs(target_states[-1][:, None], self.output_table(), scope)[:, 0]
        if items is None:
            return target_log_probs, None
        seen = candidate_places.clamp(min=1) * levels  # tokens before each group [batch, groups]
        row = torch.arange(len(seen), device=seen.device)[:, None]
        before_group = flat[-1][row * width + seen - 1]  # [batch, groups, d_model]
        after = self.continue_history(items, keys, values, seen)[-1]
        return target_log_probs, candidate_log_probs(before_group, after, self.output_table(), items, scope, allowed)

    def continue_history(self, items: Tensor, keys: list[Tensor], values: list[Tensor], seen: Tensor) -> list[Tensor]:
        """Run the layers over the codewords of candidates that continue a history.

        Args:
            items: codewords [batch, groups, k, levels]; the candidates of a group start at one place.
            keys, values: of the history, one per layer [batch, heads, length, d_head].
            seen: tokens of the history that each group sees, all before its place [batch, groups].

        Returns:
            States after each codeword but the last, of the `inner_layers` and, last, of the whole decoder
            [batch, groups, k, levels - 1, d_model].
        """
        if items.shape[-1] == 1:  # the history's state scores the only codeword, and no token is read
            no_states = keys[0].new_zeros(*items.shape[:-1], 0, self.config.d_model)
            return [no_states] * (len(self.inner_layers) + 1)
        tree = PrefixTree(prefix_tokens(items, self.config.codebook_size).flatten(0, 1))
        history_bias, tree_bias = self.candidate_biases(tree, seen, keys[0].shape[2])
        packing = choose_packing(tree.present)
        x = self.dropout(packing.pack(self.embed(tree.tokens)))
        states = []
        for number, (layer, layer_keys, layer_values) in enumerate(zip(self.layers, keys, values, strict=True), 1):
            x = layer.continue_history(x, layer_keys, layer_values, history_bias, tree_bias, packing)
            if number in self.inner_layers:
                states.append(x)
        states.append(self.dropout(self.norm(x)))
        return [tree.by_candidate(packing.pad(each)).unflatten(0, seen.shape) for each in states]

    def step(self, encoded: EncodedHistory, scope: str = "level") -> CachedStep:
        """Make a step function for `beam_search`, softmax over the "level"'s codewords or over "all" levels'."""
        return CachedStep(self, encoded, len(self.layers), scope)

    def next_codeword(
        self,
        level: int,
        tokens: Tensor | None,
        past: list[list[KeysValues]],
        encoded: EncodedHistory,
        scope: str = "level",
    ) -> tuple[Tensor, list[KeysValues]]:
        """As `Seq2Seq.next_codeword`; the history's last state predicts the first codeword (`tokens` is None)."""
        if tokens is None:
            return level_log_probs(encoded.last_state[:, None], self.output_table(), level, scope), []
        x, present = self.embed(tokens), []
        history_bias = self.history_bias(encoded, level - 1)
        beam_bias = self.relative_bias(torch.arange(1 - level, 1, device=tokens.device)[None], self.bias)[:, 0]
        for number, layer in enumerate(self.layers):
            keys, values = encoded.keys[number], encoded.values[number]
            x, new = layer.step(x, past[number], keys, values, history_bias, beam_bias)
            present.append(new)
        return level_log_probs(self.norm(x), self.output_table(), level, scope), present

    def relative_bias(self, distance: Tensor, table: nn.Embedding) -> Tensor:
        """Compute the bias of key-minus-query distances, the lowest value where the key is ahead of the query.

        Args:
            distance: [..., queries, keys].
            table: bias of each bucket and head.

        Returns:
            [..., heads, queries, keys].
        """
        buckets = relative_buckets(distance, False, self.config.buckets, self.config.max_distance)
        bias = table(buckets).movedim(-1, -3)
        return bias.masked_fill((distance > 0).unsqueeze(-3), torch.finfo(bias.dtype).min)

    def causal_bias(self, length: int, table: nn.Embedding) -> Tensor:
        """Compute the bias of a sequence's tokens towards each other [1, heads, length, length]."""
        place = torch.arange(length, device=table.weight.device)
        return self.relative_bias(place[None, :] - place[:, None], table)[None]

    def history_bias(self, encoded: EncodedHistory, after: int) -> Tensor:
        """Compute the bias towards the history of a token `after` places behind its end [batch, heads, 1, length]."""
        query = encoded.lengths[:, None] + after
        place = torch.arange(encoded.mask.shape[-1], device=query.device)
        return self.relative_bias((place - query[..., None]).clamp(max=0), self.bias) + encoded.mask

    def candidate_biases(self, tree: PrefixTree, seen: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Compute the biases of candidates towards the history and among each other.

        Args:
            tree: of the candidates, a row for each group of each history.
            seen: tokens of the history before each group [batch, groups].
            length: tokens of the padded history.

        Returns:
            [batch, heads, groups · nodes, length], and [batch · groups, heads, nodes, nodes].
        """
        lowest = torch.finfo(self.bias.weight.dtype).min
        tree_bias = self.relative_bias(tree.depth[:, None] - tree.depth[:, :, None], self.bias)
        tree_bias = tree_bias.masked_fill(~tree.visible[:, None], lowest)
        depth = tree.depth.view(*seen.shape, -1)  # [batch, groups, nodes]
        place = torch.arange(length, device=seen.device)
        distance = place - (seen[..., None] + depth).flatten(1)[..., None]  # [batch, groups · nodes, length]
        history_bias = self.relative_bias(distance.clamp(max=0), self.bias)
        unseen = place >= seen[..., None].expand_as(depth).flatten(1)[..., None]
        return history_bias.masked_fill(unseen[:, None], lowest), tree_bias


class CausalLayer(SelfAttentionLayer):
    """A self-attention layer that can also continue a history whose keys and values are known."""

    def continue_history(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        history_bias: Tensor,
        tree_bias: Tensor,
        packing: Packing | NoPacking,
    ) -> Tensor:
        """Transform trees of candidates; arguments as for `attend_history_and_tree`."""
        mixed = attend_history_and_tree(self.attention, self.norm1(x), keys, values, history_bias, tree_bias, packing)
        return self.feed_forward(x + self.dropout(mixed))

    def step(
        self,
        x: Tensor,
        past: list[KeysValues],
        keys: Tensor,
        values: Tensor,
        history_bias: Tensor,
        beam_bias: Tensor,
    ) -> tuple[Tensor, KeysValues]:
        """Transform one new token per beam; arguments as for `attend_history_and_one_token`."""
        mixed, new = attend_history_and_one_token(
            self.attention, self.norm1(x), past, keys, values, history_bias, beam_bias
        )
        return self.feed_forward(x + self.dropout(mixed)), new
