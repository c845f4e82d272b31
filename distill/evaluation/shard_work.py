"""What is done with one system for a shard of users: rank, collect a mixture's proposals, or score the cold items."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from distill.baselines.item_scorer import longest_history
from distill.data.dataset import Dataset, Examples, Split
from distill.evaluation.cold import cold_candidates
from distill.evaluation.measures import search_whole
from distill.evaluation.systems import Mixture, Ranked, System, is_searched_freely, rank_examples

PROPOSED = "proposed-"  # how the names of a mixture's arrays begin in a file
PROPOSED_SECONDS = "proposing-seconds"


class Work(NamedTuple):
    """What is done for some examples.

    Attributes:
        split: of the examples.
        batch_size: users at once.
        width: beam width; 0: the cold items are scored, nothing is ranked.
        freely: search without the trie as well, where the system can.
        whole: search over all tokens as well, where the system can.
        mixed: collect the proposals of the mixture as well.
    """

    split: Split
    batch_size: int
    width: int
    freely: bool = False
    whole: bool = False
    mixed: bool = False


@dataclass
class SystemRanker:
    """Works on examples with one system at a time.

    Attributes:
        dataset: of the examples.
        load: loads a system by its name.
        exclude_bought: as for `System.rank`.
        open_mixture: makes the mixture when it is first needed; None: nothing is mixed.
    """

    dataset: Dataset
    load: Callable[[str], System]
    exclude_bought: bool
    open_mixture: Callable[[], Mixture] | None = None
    _loaded: dict[str, System] = field(default_factory=dict)

    def rank(self, name: str, work: Work, users: np.ndarray, positions: np.ndarray) -> bytes:
        """Do some work for some examples.

        Args:
            name: of the system.
            work: what is done.
            users, positions: of the examples; those of one length after the other, as in one batch.

        Returns:
            Content of a file in NumPy's npz format. Where something is ranked it holds `items`, `scores`, `free` (items
            without the trie) and `whole` (items over all tokens; both with 0 columns where there are none), `seconds`,
            those of `items`, the proposals, whose names begin with `PROPOSED`, and their seconds; else `scores`.
        """
        system = self._system(name)
        targets = self.dataset.targets(work.split, longest_history(self.dataset))
        examples = targets.take(targets.find(users, positions))
        file = io.BytesIO()
        if work.width:
            np.savez(file, **self._rank(system, examples, work))
        else:
            cold = self.dataset.cold_items()
            scores = [
                system.ranking_scores(histories, items, self.exclude_bought)
                for histories, items in cold_candidates(cold, examples.histories)
            ]
            np.savez(file, scores=np.concatenate(scores, axis=1))
        return file.getvalue()

    def _rank(self, system: System, examples: Examples, work: Work) -> dict[str, np.ndarray]:
        ranked = self._search(system, examples, work, constrained=True)
        free = whole = np.zeros((len(examples), 0), np.int32)
        if work.freely and is_searched_freely(system):
            free = self._search(system, examples, work, constrained=False).items.astype(np.int32)
        if work.whole and (lists := search_whole(system, examples, work.width, work.batch_size)) is not None:
            whole = lists.astype(np.int32)
        arrays = {"items": ranked.items.astype(np.int32), "scores": ranked.scores, "free": free, "whole": whole}
        arrays["seconds"] = np.array(ranked.seconds)
        if work.mixed:
            title = f"{system.name}, mixed"
            started = time.time()
            proposals = self._mixture.propose(system, ranked, examples, self.exclude_bought, title)
            arrays |= {PROPOSED + key: array for key, array in self._mixture.pack(proposals).items()}
            arrays[PROPOSED_SECONDS] = np.array(time.time() - started)
        return arrays

    def _search(self, system: System, examples: Examples, work: Work, constrained: bool) -> Ranked:
        return rank_examples(system, examples, work.width, self.exclude_bought, constrained, work.batch_size)

    @cached_property
    def _mixture(self) -> Mixture:
        assert self.open_mixture is not None
        return self.open_mixture()

    def _system(self, name: str) -> System:
        if name not in self._loaded:
            self._loaded.clear()  # two may not fit
            self._loaded[name] = self.load(name)
        return self._loaded[name]
