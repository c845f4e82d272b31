"""Beam steps of a causal model in plain PyTorch: prompts encoded once, beams as a tree behind them."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from distill.decoding.tree_attention import BeamTree, additive
from teacher.model import bound_logits, output_logits

HEAD_ROWS = 128  # rows of full-vocabulary logits at once: 128 x 50,000 in float32 are 25 MiB


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts after their forward pass.

    Attributes:
        cache: keys and values of their tokens.
        hidden: the state that predicts the first codeword [prompts, dim].
        lengths: tokens of each prompt; keys behind them are not attended to [prompts].
        width: tokens of the cache.
    """

    cache: DynamicCache
    hidden: Tensor
    lengths: Tensor
    width: int


def encode(model, prompts: Tensor, lengths: Tensor) -> EncodedPrompts:
    """Encode prompts: token numbers, padded on the right [prompts, tokens], and lengths [prompts].

    Causal attention never shows the padding to a token before it.
    """
    cache = DynamicCache(config=model.config)
    states = model.base_model(input_ids=prompts, past_key_values=cache, use_cache=True).last_hidden_state
    rows = torch.arange(len(prompts), device=prompts.device)
    return EncodedPrompts(cache, states[rows, lengths - 1], lengths, prompts.shape[1])


def prefixes_of(cache: DynamicCache, states: Tensor, rows: Tensor, lengths: Tensor) -> EncodedPrompts:
    """Take prefixes of encoded sequences as prompts; a causal model has encoded each as if it stood alone.

    Args:
        cache: keys and values of the sequences.
        states: hidden states of the sequences [sequences, tokens, dim].
        rows: the sequence of each prefix [prefixes].
        lengths: tokens of each prefix, at least one [prefixes].
    """
    width = int(lengths.max())
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in selected.layers:
        layer.keys, layer.values = (table[:, :, :width].index_select(0, rows) for table in (layer.keys, layer.values))
    return EncodedPrompts(selected, states[rows, lengths - 1], lengths, width)


def codeword_log_probs(model, hidden: Tensor, token_of: Tensor) -> Tensor:
    """Compute log-probabilities of all codewords, normalised over the whole vocabulary; a few rows at a time.

    Weights in half precision round a logit of 20 by up to .06. The codewords' logits are computed in float32 then, also
    for the normalisation, and only the other tokens' logits are rounded.

    Args:
        model: a causal model.
        hidden: states that predict a codeword [..., dim].
        token_of: token number of every codeword [levels, codebook_size].

    Returns:
        float32 [..., levels, codebook_size].
    """
    tokens, head = token_of.flatten(), model.get_output_embeddings()
    exact = model.dtype != torch.float32 and type(head) is torch.nn.Linear  # not an adapter's wrapper
    if exact:
        weight, bias = head.weight[tokens].float(), None if head.bias is None else head.bias[tokens].float()
    parts = []
    for rows in hidden.flatten(0, -2).split(HEAD_ROWS):
        logits = output_logits(model, rows)
        if exact:
            codewords = bound_logits(model, torch.nn.functional.linear(rows.float(), weight, bias))
            logits.index_copy_(1, tokens, codewords)
        else:
            codewords = logits[:, tokens]
        parts.append(codewords - logits.logsumexp(-1, keepdim=True))
    return torch.cat(parts).view(*hidden.shape[:-1], *token_of.shape)


def likeliest_tokens(model, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Compute the k likeliest tokens of the whole vocabulary, a few rows at a time.

    In half precision the logits are rounded, as in a model's own `generate`.

    Args:
        model: a causal model.
        hidden: states [..., dim].
        k: tokens.

    Returns:
        float32 log-probabilities and token numbers, best first [..., min(k, vocabulary)].
    """
    parts = []
    for rows in hidden.flatten(0, -2).split(HEAD_ROWS):
        logits = output_logits(model, rows)
        best, tokens = logits.topk(min(k, logits.shape[-1]), dim=-1)
        parts.append((best - logits.logsumexp(-1, keepdim=True), tokens))
    log_probs, tokens = (torch.cat(part).unflatten(0, hidden.shape[:-1]) for part in zip(*parts, strict=True))
    return log_probs, tokens


def token_log_probs(model, hidden: Tensor) -> Tensor:
    """Compute log-probabilities of the whole vocabulary, float32 [..., vocabulary].

    Args:
        model: a causal model.
        hidden: states [..., dim].
    """
    return output_logits(model, hidden).log_softmax(-1)


class TreeStep:
    """`beam_search.Step` of a causal model: beams as a tree in one growing key-value cache.

    Args:
        model: a causal model.
        token_of: token number of every codeword [levels, codebook_size].
        encoded: the prompts; their cache grows.
    """

    def __init__(self, model, token_of: Tensor, encoded: EncodedPrompts):
        self.model, self.token_of, self.encoded = model, token_of, encoded
        self.branches = BeamTree(encoded.lengths, encoded.width)

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        """As `beam_search.Step`."""
        hidden = self._states(parents, None if codes is None else self.token_of[level - 1][codes])
        return codeword_log_probs(self.model, hidden, self.token_of)[..., level, :]

    def likeliest_tokens(self, parents: Tensor | None, tokens: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        """As `whole_vocabulary.TokenStep`: the k likeliest tokens of each beam, of the whole vocabulary."""
        return likeliest_tokens(self.model, self._states(parents, tokens), k)

    def token_log_probs(self, parents: Tensor | None, tokens: Tensor | None) -> Tensor:
        """Compute the log-probabilities of all tokens behind each beam [batch, beams, vocabulary]."""
        return token_log_probs(self.model, self._states(parents, tokens))

    def _states(self, parents: Tensor | None, tokens: Tensor | None) -> Tensor:
        """Append a token to each beam; returns the states that predict the next [batch, beams, dim]."""
        if tokens is None:
            return self.encoded.hidden[:, None]
        visible, positions = self.branches.append_beam_tokens(parents)
        return self.model.base_model(
            input_ids=tokens,
            attention_mask=additive(visible, self.model.dtype),
            position_ids=positions,
            past_key_values=self.encoded.cache,
            use_cache=True,
        ).last_hidden_state
