"""Constrained beam search over any step function (paper, Appendix A).

The trie decides which codewords are candidates *before* the top-k, so a rare child is never lost to a likelier
invalid one and no beam vanishes while valid IDs remain. All shapes depend on batch, width and level alone.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distill.decoding.trie import FullTree, Trie


class Step(Protocol):
    """One decoding step of a model for all beams at once."""

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        """Log-probabilities of the codewords of `level`.

        Args:
            level: 0 for the first codeword; then `parents` and `codes` are None and there is one beam a user.
            parents: for each beam, which beam of the previous call it goes on from [batch, beams].
            codes: the codeword chosen for it on the level before [batch, beams].

        Returns:
            [batch, beams, codebook_size].
        """


class Beams(NamedTuple):
    """Ranked IDs; where there are fewer valid ones than the width, the rest score -inf.

    `leaves` are numbers in the trie ([batch, width]), `codes` are [batch, width, levels], `scores` are summed
    log-probabilities [batch, width], best first.
    """

    leaves: Tensor
    codes: Tensor
    scores: Tensor


@torch.no_grad()
def beam_search(
    step: Step, tree: Trie | FullTree, batch: int, width: int, closed: Tensor | None = None, device="cpu"
) -> Beams:
    """The `width` likeliest IDs by greedy beam search; exact if `width` is at least the number of valid IDs.

    Args:
        step: the model.
        tree: the valid IDs, or a `FullTree`.
        batch: users.
        width: beams a user.
        closed: leaves not to be recommended, -1 for none, sorted by row [batch, any] (`Trie.closed_leaves`); they are
            taken out before the last top-k, so no width is lost to them.
        device: where the step's tensors are.
    """
    nodes = torch.zeros(batch, 1, dtype=torch.long, device=device)
    scores = torch.zeros(batch, 1, device=device)
    chosen = torch.empty(batch, 1, 0, dtype=torch.long, device=device)
    parents = codes = None
    for level in range(tree.levels):
        log_probs = step(level, parents, codes)
        candidates = tree.candidates(level, nodes, log_probs, closed).float()
        places = candidates.shape[2]
        scores, best = (scores[..., None] + candidates).flatten(1).topk(min(width, candidates[0].numel()), dim=1)
        parents = best // places
        codes, nodes = tree.choose(level, nodes.gather(1, parents), best % places)
        chosen = chosen.gather(1, parents[..., None].expand(-1, -1, level))
        chosen = torch.cat([chosen, codes[..., None]], dim=2)
    leaves = torch.where(scores > -torch.inf, nodes, -1)
    return Beams(leaves, chosen, scores)


def search(
    step: Step, trie: Trie, bought: Tensor, width: int, exclude_bought: bool = True, constrained: bool = True
) -> Beams:
    """`beam_search` for users with histories.

    Args:
        step: the model.
        trie: the valid IDs.
        bought: the histories, item numbers padded with -1 [batch, length].
        width: beams a user.
        exclude_bought: leave out IDs with nothing new to the user.
        constrained: only valid IDs; otherwise any, nothing is left out, and leaves are -1 where there is no such item.
    """
    closed = trie.closed_leaves(bought) if exclude_bought and constrained else None
    tree = trie if constrained else FullTree(trie.levels, trie.codebook_size)
    beams = beam_search(step, tree, len(bought), width, closed, bought.device)
    return beams if constrained else beams._replace(leaves=trie.find(beams.codes))


def to_items(
    beams: Beams, trie: Trie, bought: Tensor, width: int, exclude_bought: bool = True, constrained: bool = True
) -> tuple[Tensor, Tensor]:
    """Items behind the beams of `search` and their scores, best first, -1 for none [batch, up to width].

    Several items behind one ID follow each other; where the search was not constrained, places are kept, so that the
    invalid ones can be counted.
    """
    if not constrained:
        return trie.first_item(beams.leaves), beams.scores
    items, place = trie.items(beams.leaves, width, bought if exclude_bought else None)
    return items, beams.scores.gather(1, place)


@torch.no_grad()
def score_all(step: Step, tree: Trie, batch: int, device="cpu") -> Tensor:
    """Exact log-probabilities of all valid IDs: one pass over the trie's levels, every node once.

    The oracle of `beam_search`, for catalogues whose nodes fit into memory as beams do (ten thousands of items).

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
