"""Constrained beam search over any model that predicts the next codeword (paper, Appendix A).

The trie masks invalid codewords *before* the top-k, so a rare valid codeword is never lost to a likelier invalid one,
and no beam ends while valid IDs remain. All shapes depend on the batch, the width and the level only.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distill.decoding.trie import FullTree, Trie


class Step(Protocol):
    """One decoding step of a model for all beams at once."""

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        """Compute the log-probabilities of the codewords of `level`.

        Args:
            level: 0 for the first codeword; then `parents` and `codes` are None and each user has one beam.
            parents: for each beam, the beam of the previous call that it continues [batch, beams].
            codes: the codeword of each beam on the previous level [batch, beams].

        Returns:
            [batch, beams, codebook_size].
        """


class Beams(NamedTuple):
    """Ranked IDs, best first; where there are fewer valid IDs than the width, the others score −∞.

    Attributes:
        leaves: leaf numbers in the trie, -1 for none [batch, width].
        codes: codewords [batch, width, levels].
        scores: summed log-probabilities [batch, width].
    """

    leaves: Tensor
    codes: Tensor
    scores: Tensor


@torch.no_grad()
def beam_search(
    step: Step, tree: Trie | FullTree, batch: int, width: int, closed: Tensor | None = None, device="cpu"
) -> Beams:
    """Search the `width` likeliest IDs; exact if `width` is at least the number of valid IDs.

    Args:
        step: the model.
        tree: the valid IDs, or a `FullTree`.
        batch: number of users.
        width: beam width.
        closed: leaves not to be recommended, -1 for none, each row sorted [batch, any] (`Trie.closed_leaves`); they are
            masked before the last top-k, so they take no places.
        device: of the step's tensors.
    """
    nodes = torch.zeros(batch, 1, dtype=torch.long, device=device)
    scores = torch.zeros(batch, 1, device=device)
    prefixes = torch.empty(batch, 1, 0, dtype=torch.long, device=device)
    parents = codes = None
    for level in range(tree.levels):
        log_probs = step(level, parents, codes)
        candidates = tree.candidates(level, nodes, log_probs, closed).float()
        places = candidates.shape[2]
        scores, best = (scores[..., None] + candidates).flatten(1).topk(min(width, candidates[0].numel()), dim=1)
        parents = best // places
        codes, nodes = tree.choose(level, nodes.gather(1, parents), best % places)
        prefixes = prefixes.gather(1, parents[..., None].expand(-1, -1, level))
        prefixes = torch.cat([prefixes, codes[..., None]], dim=2)
    leaves = torch.where(scores > -torch.inf, nodes, -1)
    return Beams(leaves, prefixes, scores)


def search(
    step: Step, trie: Trie, bought: Tensor, width: int, exclude_bought: bool = True, constrained: bool = True
) -> Beams:
    """Run `beam_search` for users with histories.

    Args:
        step: the model.
        trie: the valid IDs.
        bought: the histories, item numbers padded with -1 [batch, length].
        width: beam width.
        exclude_bought: leave out IDs whose items are all in the history.
        constrained: search valid IDs only; otherwise any codewords: nothing is excluded, and invalid IDs have leaf -1.
    """
    closed = trie.closed_leaves(bought) if exclude_bought and constrained else None
    tree = trie if constrained else FullTree(trie.levels, trie.codebook_size)
    beams = beam_search(step, tree, bought.shape[0], width, closed, bought.device)
    return beams if constrained else beams._replace(leaves=trie.find(beams.codes))


def to_items(
    beams: Beams, trie: Trie, bought: Tensor, width: int, exclude_bought: bool = True, constrained: bool = True
) -> tuple[Tensor, Tensor]:
    """Convert the beams of `search` to items.

    Args:
        beams: the result of `search`.
        trie: the valid IDs.
        bought: the histories, item numbers padded with -1 [batch, length].
        width: most items of a user.
        exclude_bought: as for `search`; also leaves out single items of IDs that several items share.
        constrained: as for `search`; an unconstrained result keeps its places, so that invalid IDs can be counted.

    Returns:
        Item numbers, best first, -1 for none, and their scores; both [batch, at most width]. Items that share an ID
        follow each other.
    """
    if not constrained:
        return trie.first_item(beams.leaves), beams.scores
    items, place = trie.items(beams.leaves, width, bought if exclude_bought else None)
    return items, beams.scores.gather(1, place)


@torch.no_grad()
def score_ids(step: Step, codes: Tensor) -> Tensor:
    """Compute the log-probabilities of given IDs: a step for each level, with every ID as a beam.

    As teacher forcing in one pass, and for small networks and many users up to twice as fast on CPUs: each beam has one
    new token at a time, which needs no attention masks.

    Args:
        step: the model.
        codes: of the IDs [batch, k, levels].

    Returns:
        [batch, k].
    """
    k, levels = codes.shape[1:]
    log_probs = step(0, None, None)
    scores = log_probs.expand(-1, k, -1).gather(2, codes[..., :1])
    parents = torch.zeros_like(codes[..., 0])
    for level in range(1, levels):
        log_probs = step(level, parents, codes[..., level - 1])
        scores = scores + log_probs.gather(2, codes[..., level, None])
        parents = torch.arange(k, device=codes.device).expand_as(parents)
    return scores[..., 0].float()


@torch.no_grad()
def score_all(step: Step, tree: Trie, batch: int, device="cpu") -> Tensor:
    """Compute the exact log-probabilities of all valid IDs: a step for each level, with every node as a beam.

    A reference for `beam_search`, for catalogues whose nodes fit into memory as beams (tens of thousands of items).

    Returns:
        [batch, n_leaves].
    """
    scores = torch.zeros(batch, 1, device=device)
    parents = codes = None
    for level in range(tree.levels):
        log_probs = step(level, parents, codes).float()
        parent = torch.repeat_interleave(tree.offsets[level].diff()).long()
        code = tree.codes[level].long()
        scores = scores[:, parent] + log_probs[:, parent, code]
        parents, codes = parent.expand(batch, -1), code.expand(batch, -1)
    return scores
