"""Beam search over a model's whole vocabulary, to measure how many of its beams name no item (paper, 1 and Appendix A).

`FullTree` lets each step choose among the codewords of its level. Here each step chooses among all tokens that the
model can write: codewords of other levels, and for a language model words and the end token, which is a token like any
other. An ID is valid if each token is a codeword of its level and some item has that ID.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from distill.decoding.trie import Trie


class TokenStep(Protocol):
    """One decoding step of a model for all beams at once."""

    def __call__(self, level: int, parents: Tensor | None, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the likeliest next tokens of each beam.

        Args:
            level: 0 for the first token; then `parents` and `tokens` are None and each user has one beam.
            parents: for each beam, the beam of the previous call that it continues [batch, beams].
            tokens: the token of each beam at the previous call [batch, beams].

        Returns:
            Log-probabilities over the whole vocabulary, and token numbers; both [batch, beams, k], k at least the beam
            width or the whole vocabulary.
        """


@torch.no_grad()
def search_tokens(step: TokenStep, levels: int, batch: int, width: int, device="cpu") -> tuple[Tensor, Tensor]:
    """Search the `width` likeliest sequences of as many tokens as an ID has.

    A beam's own `width` likeliest tokens are enough: no more of them can be among the `width` best of all beams.

    Args:
        step: the model.
        levels: tokens of an ID.
        batch: number of users.
        width: beam width.
        device: of the step's tensors.

    Returns:
        Token numbers [batch, width, levels], and summed log-probabilities [batch, width], best first; fewer where the
        vocabulary is small.
    """
    scores = torch.zeros(batch, 1, device=device)
    sequences = torch.empty(batch, 1, 0, dtype=torch.long, device=device)
    parents = tokens = None
    for level in range(levels):
        log_probs, choices = step(level, parents, tokens)
        k = log_probs.shape[2]
        candidates = (scores[..., None] + log_probs.float()).flatten(1)
        scores, best = candidates.topk(min(width, candidates.shape[1]), dim=1)
        parents, tokens = best // k, choices.flatten(1).gather(1, best)
        sequences = sequences.gather(1, parents[..., None].expand(-1, -1, level))
        sequences = torch.cat([sequences, tokens[..., None]], dim=2)
    return sequences, scores


class Vocabulary:
    """Which tokens of a vocabulary are codewords.

    Args:
        token_of: token number of every codeword [levels, codebook_size].
        size: tokens of the vocabulary.
        gaps: codewords that it lacks, whose token numbers mean nothing [levels, codebook_size]; None: it has all.
    """

    def __init__(self, token_of: Tensor, size: int, gaps: Tensor | None = None):
        self.levels, self.codebook_size = token_of.shape
        numbers = torch.arange(token_of.numel(), device=token_of.device).view_as(token_of)
        present = torch.ones_like(token_of, dtype=torch.bool) if gaps is None else ~gaps
        self.codeword_of = torch.full((size,), -1, device=token_of.device)  # level · codebook_size + code
        self.codeword_of[token_of[present]] = numbers[present]

    def find_items(self, sequences: Tensor, trie: Trie) -> Tensor:
        """Look up the items of token sequences.

        Args:
            sequences: token numbers [..., levels].
            trie: of the valid IDs.

        Returns:
            The first item of each ID, -1 where the tokens are none [...].
        """
        first = torch.arange(self.levels, device=sequences.device) * self.codebook_size
        codes = self.codeword_of[sequences] - first
        is_codeword = ((codes >= 0) & (codes < self.codebook_size)).all(-1)
        leaves = trie.find(codes.clamp(0, self.codebook_size - 1))
        return trie.first_item(torch.where(is_codeword, leaves, -1))
