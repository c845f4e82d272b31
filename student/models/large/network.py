"""The `large` student: the interface of `causal` around any Hugging Face causal language model, up to 7B.

The language model reads a start token and the history's codewords, as a teacher of `stream` does. Candidates are
appended to the sequence; a mask shows each of them the history up to its place and its own codewords
(distill/decoding/tree_attention.py). The history is read once for all of them, so memory grows by their tokens alone.
Only codewords go in and out, so of the vocabulary only their rows and the start token's are kept; with LoRA, these
codeword rows and the adapters are all that trains.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, DynamicCache, PreTrainedModel
from transformers.initialization import no_init_weights

from distill.decoding.tree_attention import BeamTree, additive, candidate_attention_mask
from distill.runtime import models
from student.models.causal import Positions
from student.models.large.lora import add_lora, merge_lora, without_lora
from student.models.layers import (
    Featured,
    candidate_log_probs,
    forced_log_probs,
    history_tokens,
    level_log_probs,
    prefix_tokens,
)
from student.models.trunk import remove_vocabulary

CACHE_BYTES = 2 << 30  # keys and values of the users that are searched at once


@dataclass(frozen=True)
class LargeConfig:
    """What the network consists of.

    Attributes:
        levels, codebook_size: of the semantic IDs.
        network: the language model's config, as Hugging Face writes it.
        tied: codewords have one row for input and output.
        scale: of the input rows, where the language model scales them itself.
        lora_rank: of the adapters, 0 for none.
        dropout: before the adapters.
        checkpointing: recompute activations in the backward pass.
        features: of the teacher's states that are guessed in training.
        feature_layers: of the teacher, whose states are guessed.
    """

    levels: int
    codebook_size: int
    network: dict[str, Any]
    tied: bool = False
    scale: float = 1.0
    lora_rank: int = 0
    dropout: float = 0.0
    checkpointing: bool = False
    features: int = 0
    feature_layers: int = 1


class EncodedHistory(NamedTuple):
    """A batch of histories after one pass of the language model.

    Attributes:
        cache: keys and values of all layers.
        lengths: tokens of each history [batch].
        width: tokens of the padded histories.
        last_state: state after each history's last token [batch, hidden].
    """

    cache: DynamicCache
    lengths: Tensor
    width: int
    last_state: Tensor


class Large(Featured):
    """A language model's layers (the trunk) between the codewords' input and output rows.

    Args:
        config: see there.
        trunk: the layers; None: built from the config, weights to be loaded.
    """

    in_place = True  # validated and kept as it is, since copies are expensive

    def __init__(self, config: LargeConfig, trunk: PreTrainedModel | None = None):
        super().__init__()
        self.config, is_empty = config, trunk is None
        if is_empty:
            with no_init_weights():
                network = AutoConfig.for_model(**config.network)
                trunk = models.build_causal_model(network, dtype=network.dtype).base_model
        shape = (config.levels, config.codebook_size, trunk.config.get_text_config().hidden_size)
        self.trunk = trunk
        self.head = nn.Parameter(torch.zeros(shape))
        self.codewords = None if config.tied else nn.Parameter(torch.zeros(shape))
        self.start = nn.Parameter(torch.zeros(shape[-1]))
        depth = trunk.config.get_text_config().num_hidden_layers
        self.add_feature_head(shape[-1], config.features, config.feature_layers, depth)
        if config.checkpointing:
            trunk.gradient_checkpointing_enable({"use_reentrant": False})
            trunk.disable_input_require_grads()  # codewords train without it, and a model with hooks cannot be copied
        if is_empty:
            remove_vocabulary(trunk)
        if config.lora_rank:
            add_lora(trunk, config.lora_rank, config.dropout)
            self.start.requires_grad_(False)

    @property
    def users_at_once(self) -> int:
        """Users whose keys and values fit `CACHE_BYTES` in a search with 20 items of history and 20 beams."""
        c = self.trunk.config.get_text_config()
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        token_bytes = 2 * c.num_hidden_layers * heads * width * next(self.trunk.parameters()).element_size()
        return max(1, CACHE_BYTES // (token_bytes * self.config.levels * 40))

    def forward(self, history: Tensor, items: Tensor | None, scope: str = "level", positions: Positions | None = None):
        """As `Causal.forward`, but candidates are scored in the pass that reads the history, as training needs it."""
        if positions is not None:
            return self.one_pass(history, items, positions, scope)
        places = (history[..., 0] >= 0).sum(1, keepdim=True)
        before, after = self.read(self.with_start(history), items[:, None], places)
        last = (places * self.config.levels)[..., None].expand(-1, -1, self.head.shape[-1])
        firsts = [each.gather(1, last)[:, None].expand(-1, items.shape[1], -1, -1) for each in before]
        states = [torch.cat([first, each[:, 0]], dim=2) for first, each in zip(firsts, after, strict=True)]
        self.guess_features([each[:, 0] for each in states])
        return forced_log_probs(states[-1], self.head, scope)

    def one_pass(
        self, sequences: Tensor, items: Tensor | None, positions: Positions, scope: str = "level"
    ) -> tuple[Tensor, Tensor | None]:
        """As `Causal.one_pass`."""
        levels, (rows, places, candidate_places, allowed) = self.config.levels, positions
        tokens = self.with_start(sequences)[:, :-1]  # nothing follows the last codeword
        group_places = None if items is None else candidate_places.clamp(min=1)
        states, after = self.read(tokens, items, group_places)
        width, flat = tokens.shape[1], [each.flatten(0, 1) for each in states]
        before_target = rows * width + places * levels  # the start token stands before the first item
        target_places = before_target[:, None] + torch.arange(levels, device=tokens.device)
        target_states = [each[target_places] for each in flat]
        self.guess_features(target_states)
        target_log_probs = forced_log_probs(target_states[-1][:, None], self.head, scope)[:, 0]
        if items is None:
            return target_log_probs, None
        row = torch.arange(len(group_places), device=tokens.device)[:, None]
        before_group = flat[-1][row * width + group_places * levels]
        return target_log_probs, candidate_log_probs(before_group, after[-1], self.head, items, scope, allowed)

    def encode(self, codes: Tensor) -> EncodedHistory:
        """Encode histories for `log_probs` and `step`, which continue from their keys and values.

        Args:
            codes: codewords of the items, oldest first; whole items padded with -1 on the right [batch, items, levels].
        """
        tokens, cache = self.with_start(codes), DynamicCache()
        lengths = 1 + (codes[..., 0] >= 0).sum(1) * self.config.levels
        states = self.run_trunk(tokens, *causal_mask(tokens), cache)[-1]
        last_state = states.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1])).squeeze(1)
        return EncodedHistory(cache, lengths, tokens.shape[1], last_state)

    def log_probs(self, encoded: EncodedHistory, items: Tensor, scope: str = "level") -> Tensor:
        """Compute the log-probabilities of every codeword at every position of candidates; as `Causal.log_probs`."""
        batch, k, levels = items.shape
        first = encoded.last_state[:, None, None].expand(-1, k, -1, -1)
        if levels == 1:  # the history's state scores the only codeword, and no token is read
            return forced_log_probs(first, self.head, scope)
        visible, positions = candidate_attention_mask(encoded.lengths[:, None], k, levels - 1, encoded.width)
        tokens = prefix_tokens(items, self.config.codebook_size).flatten(1)
        after = self.run_trunk(tokens, visible, positions, fork(encoded.cache))[-1].view(batch, k, levels - 1, -1)
        return forced_log_probs(torch.cat([first, after], dim=2), self.head, scope)

    def step(self, encoded: EncodedHistory, scope: str = "level") -> TreeStep:
        """Make a step function for `beam_search`, softmax over the "level"'s codewords or over "all" levels'."""
        return TreeStep(self, encoded, scope)

    def read(self, tokens: Tensor, items: Tensor | None, places: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """Read sequences and the candidates that continue them in one pass.

        Args:
            tokens: of the sequences [batch, width].
            items: codewords of candidates [batch, groups, k, levels]; None: no candidates.
            places: items before each group [batch, groups].

        Returns:
            States after each token [batch, width, hidden], and after each codeword but the last of the candidates
            [batch, groups, k, levels - 1, hidden]; both of the `inner_layers` and, last, of the whole trunk.
        """
        visible, positions = causal_mask(tokens)
        if items is None:
            return self.run_trunk(tokens, visible, positions), []
        (_, _, k, levels), width = items.shape, tokens.shape[1]
        seen = 1 + places * levels
        candidates_see, candidate_positions = candidate_attention_mask(seen, k, levels - 1, width)
        visible = torch.cat([F.pad(visible, (0, candidates_see.shape[1])), candidates_see], dim=1)
        tokens = torch.cat([tokens, prefix_tokens(items, self.config.codebook_size).flatten(1)], dim=1)
        states = self.run_trunk(tokens, visible, torch.cat([positions, candidate_positions], dim=1))
        after = [each[:, width:].unflatten(1, (*items.shape[1:3], levels - 1)) for each in states]
        return [each[:, :width] for each in states], after

    def run_trunk(
        self, tokens: Tensor, visible: Tensor, positions: Tensor, cache: DynamicCache | None = None
    ) -> list[Tensor]:
        """Run the language model's layers over tokens.

        Args:
            tokens: [batch, new].
            visible: which keys each of them sees [batch, new, keys].
            positions: of the tokens [batch, new].
            cache: keys and values of earlier tokens; those of the new ones are added.

        Returns:
            States of the `inner_layers` and, last, of the whole trunk [batch, new, hidden].
        """
        rows = self.head if self.codewords is None else self.codewords
        x = F.embedding(tokens, torch.cat([self.start[None], rows.flatten(0, 1)])) * self.config.scale
        x = x.to(next(self.trunk.parameters()).dtype)
        uses_sdpa = self.trunk.config._attn_implementation == "sdpa"
        out = self.trunk(
            inputs_embeds=x,
            attention_mask=visible[:, None] if uses_sdpa else additive(visible, x.dtype),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            output_hidden_states=bool(self.inner_layers),
        )
        states = [out.hidden_states[number] for number in self.inner_layers]  # the embedded tokens are number 0
        return [each.to(self.head.dtype) for each in (*states, out.last_hidden_state)]

    def with_start(self, codes: Tensor) -> Tensor:
        """Put the start token before histories' codewords, as tokens, 0 where padded [batch, 1 + items · levels]."""
        return F.pad(history_tokens(codes, self.config.codebook_size), (1, 0))

    def merged(self) -> Large:
        """Return the model without adapters, their effect added to its weights: a copy on the CPU if it has any."""
        if not self.config.lora_rank:
            return self
        model = Large(replace(self.config, lora_rank=0, checkpointing=False))
        model.load_state_dict(without_lora(self.state_dict()))
        merge_lora(self.trunk, model.trunk)
        return model


class TreeStep:
    """The step function of `Large` for `beam_search`: the beams are a tree behind the history, in one growing cache."""

    def __init__(self, model: Large, encoded: EncodedHistory, scope: str):
        self.model, self.scope, self.last_state = model, scope, encoded.last_state
        self.cache, self.beams = fork(encoded.cache), BeamTree(encoded.lengths, encoded.width)

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        """Return log-probabilities of the level's codewords; see `beam_search.Step`."""
        states = self.last_state[:, None]
        if level > 0:
            tokens = codes + 1 + (level - 1) * self.model.config.codebook_size
            states = self.model.run_trunk(tokens, *self.beams.append_beam_tokens(parents), self.cache)[-1]
        return level_log_probs(states, self.model.head, level, self.scope)


def fork(cache: DynamicCache) -> DynamicCache:
    """Start a second cache from the same keys and values, which are shared and not copied."""
    forked = copy.copy(cache)
    forked.layers = [copy.copy(layer) for layer in cache.layers]
    return forked


def causal_mask(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mask [batch, width, width] and positions [batch, width] of sequences with their padding on the right."""
    batch, width = tokens.shape
    visible = torch.ones(width, width, dtype=torch.bool, device=tokens.device).tril()
    return visible.expand(batch, -1, -1), torch.arange(width, device=tokens.device).expand(batch, -1)
