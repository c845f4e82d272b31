"""A softmax over the trie's children: over the codewords that continue a prefix to some item's ID, not all of a level.

For models that were trained so (`--scope trie`): they never learn to avoid invalid codewords, which the trie excludes
anyway, and their logits mean something among children of one node only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.decoding.beam_search import Step
from distill.decoding.trie import Trie

EXCLUDED = -1e4  # log-probability of a codeword that is no child: e^−10000 is 0, and 0 · −10000 is 0, not NaN as 0 · −∞


def renormalise(log_probs: Tensor, allowed: Tensor) -> Tensor:
    """Renormalise log-probabilities over the allowed codewords; all others get `EXCLUDED`.

    Args:
        log_probs: of the codewords of a level [..., codebook_size].
        allowed: bool, at least one a row [..., codebook_size].
    """
    return log_probs.masked_fill(~allowed, -torch.inf).log_softmax(-1).masked_fill(~allowed, EXCLUDED)


class ChildrenStep:
    """Renormalises each step of a model over the children of the beam's node. Implements `Step`.

    Codewords that are no child keep numbers without a meaning: the search looks at children alone.

    Args:
        step: the model, softmax over the level's codewords.
        trie: the valid IDs; a search may be restricted to some of them, all beams are IDs of this trie.
    """

    def __init__(self, step: Step, trie: Trie):
        self.step, self.trie = step, trie
        self.nodes: Tensor | None = None

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        """As `Step`."""
        log_probs = self.step(level, parents, codes)
        if parents is None:
            self.nodes = torch.zeros(log_probs.shape[:2], dtype=torch.long, device=log_probs.device)
        else:
            assert self.nodes is not None and codes is not None
            self.nodes = self.trie.child(level - 1, self.nodes.gather(1, parents), codes).clamp(min=0)
        return log_probs - self.trie.candidates(level, self.nodes, log_probs).logsumexp(-1, keepdim=True)
