"""The beams of one search as a tree: which prefixes of semantic IDs each level kept, and at what probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distill.decoding.beam_search import Step, search
from distill.decoding.trie import Trie
from student.precision import autocast
from student.recommender import Recommender


@dataclass(frozen=True)
class Prefix:
    """The first codewords of semantic IDs.

    Attributes:
        codewords: from the first level on.
        probability: of the codewords together, by the network that searches.
        items: numbers of the recommendable items that have the whole ID; none on earlier levels.
    """

    codewords: tuple[int, ...]
    probability: float
    items: Sequence[int] = ()


class RecordedStep:
    """A decoding step that keeps what it was asked for and what it answered, for one user.

    Attributes:
        chosen: parents and codewords of the beams that each level but the last kept.
        log_probs: of all codewords, for each level.
    """

    def __init__(self, step: Step):
        self.step = step
        self.chosen: list[tuple[Tensor, Tensor]] = []
        self.log_probs: list[Tensor] = []

    def __call__(self, level: int, parents: Tensor | None, codes: Tensor | None) -> Tensor:
        if parents is not None:
            self.chosen.append((parents[0].cpu(), codes[0].cpu()))
        log_probs = self.step(level, parents, codes)
        self.log_probs.append(log_probs[0].float().cpu())
        return log_probs


@torch.no_grad()
def beam_tree(recommender: Recommender, history: np.ndarray, width: int, exclude_bought: bool) -> list[list[Prefix]]:
    """Search after one history and list the prefixes that each level kept, likeliest first.

    Neither memories nor a ranker take part.

    Args:
        recommender: a student, perhaps restricted to some items.
        history: item numbers, oldest first [length].
        width: beams.
        exclude_bought: leave out the history's items, as the search does.
    """
    bought = torch.from_numpy(history)[None].to(recommender.device)
    with autocast(recommender.device, recommender.precision):
        recent = recommender.history_codes(bought[:, -recommender.max_history :])
        step = RecordedStep(recommender.make_step(recommender.model, recent))  # as its search makes it
        beams = search(step, recommender.trie, bought, width, exclude_bought)
    levels, prefixes, scores = [], torch.zeros(1, 0, dtype=torch.long), torch.zeros(1)
    for (parents, codes), log_probs in zip(step.chosen, step.log_probs, strict=False):
        prefixes = torch.cat([prefixes[parents], codes[:, None]], dim=1)
        scores = scores[parents] + log_probs[parents, codes]
        # where few IDs are valid, beams hold others too
        exists = recommender.trie.find(prefixes.to(recommender.device)) >= 0
        levels.append(_prefixes(prefixes, scores, exists.cpu()))
    leaves, codes = beams.leaves[0].cpu(), beams.codes[0].cpu()
    excluded = set(history.tolist()) if exclude_bought else set()
    leaf_of = {tuple(codes[row].tolist()): leaf for row, leaf in enumerate(leaves.tolist()) if leaf >= 0}
    whole = _prefixes(codes, beams.scores[0].cpu(), leaves >= 0)
    items_of = [leaf_items(recommender.trie, leaf_of[prefix.codewords]) for prefix in whole]
    last = [
        replace(prefix, items=[item for item in items if item not in excluded])
        for prefix, items in zip(whole, items_of, strict=True)
    ]
    return [*levels, last]


def leaf_items(trie: Trie, leaf: int) -> list[int]:
    """List the item numbers of a leaf."""
    first, end = trie.leaf_offsets[leaf : leaf + 2].tolist()
    return trie.leaf_items[first:end].tolist()


def _prefixes(codewords: Tensor, scores: Tensor, valid: Tensor) -> list[Prefix]:
    """List valid prefixes, likeliest first, each once."""
    best: dict[tuple[int, ...], float] = {}
    for row in scores.argsort(descending=True, stable=True).tolist():
        if valid[row] and scores[row] > -torch.inf:
            best.setdefault(tuple(codewords[row].tolist()), scores[row].exp().item())
    return [Prefix(codewords, probability) for codewords, probability in best.items()]
