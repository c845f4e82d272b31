"""What the evaluation asks of a trained system, and how it is asked for all users."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from distill.baselines.content import Content, ContentSettings
from distill.baselines.counting import TransitionSettings
from distill.data.dataset import PAD, Dataset, Examples, batches_by_length
from distill.evaluation.cold import ScoreCandidates
from distill.ranking import mask_history
from distill.runtime.logs import progress_bar

SEARCHING = ("teacher", "student")  # kinds of systems that search semantic IDs
EXACT_BATCH = 8  # users whose items are all scored at once


class System(Protocol):
    """A trained system. Histories are full; the system itself reads as many of their last items as it was trained with.

    Attributes:
        name: of its row.
        kind: a "baseline" scores items directly, "teacher" and "student" search for semantic IDs; a "ranker" orders
            items, and its scores need not be probabilities.
        parameters: their number.
        needs_trie: whether its scores mean nothing without the trie (`--scope trie`), so that it is never searched so.
    """

    name: str
    kind: Literal["teacher", "student", "baseline", "ranker"]
    parameters: int
    needs_trie: bool

    def rank(
        self, histories: np.ndarray, beam_width: int, exclude_bought: bool, constrained: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank items.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            beam_width: beams, and length of the lists.
            exclude_bought: leave out all items of the histories.
            constrained: search valid semantic IDs only; otherwise places with an invalid ID are -1.

        Returns:
            Item numbers, best first, -1 for none, and their log-probabilities; both [users, up to beam_width].
        """
        ...

    def search_whole_vocabulary(self, histories: np.ndarray, beam_width: int) -> np.ndarray | None:
        """Search over all tokens that the system can write, not only those of the level.

        Returns:
            Item numbers, best first, -1 for an invalid ID [users, beam_width]; None where there is no such search.
        """
        ...

    def score_all(self, histories: np.ndarray, exclude_bought: bool) -> np.ndarray:
        """Exact log-probabilities of all items [users, n_items]; items of the history need not be excluded."""
        ...

    def score_candidates(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Exact log-probabilities of some items, -1 for none [users, k]."""
        ...

    def ranking_scores(self, histories: np.ndarray, items: np.ndarray, exclude_bought: bool) -> np.ndarray:
        """Scores of some items by which the system ranks, its memory included; −inf: never recommended [users, k]."""
        ...


def searches_ids(system: System) -> bool:
    """Tell whether a system searches semantic IDs; others score items."""
    return system.kind in SEARCHING


def is_searched_freely(system: System) -> bool:
    """Tell whether a system is also searched without the trie, to count its invalid IDs."""
    return searches_ids(system) and not system.needs_trie


class Ranked(NamedTuple):
    """Ranked items of all users, -1 for none, their scores (both [users, beam width]), and the seconds it took."""

    items: np.ndarray
    scores: np.ndarray
    seconds: float


class Mixture(Protocol):
    """Mixes a system's beams with what learns nothing: the rows `teacher+transitions` and `teacher+counter+content`.

    Attributes:
        names: what the system is mixed with, one row each (`distill.baselines.names`).
    """

    names: list[str]

    def propose(self, system: System, beams: Ranked, examples: Examples, exclude_bought: bool, title: str) -> Any:
        """Collect the beams and the items of counter and content, with the probabilities of all of them."""
        ...

    def tune(self, name: str, proposals: Any, targets: np.ndarray) -> str:
        """Choose the weights of a row on proposals for validation examples; returns them in words, for a note."""
        ...

    def rank(self, name: str, proposals: Any, beam_width: int) -> np.ndarray:
        """Rank the proposals by the mixture [users, up to beam_width]."""
        ...

    def ranking_scores(
        self, name: str, score: ScoreCandidates, histories: np.ndarray, items: np.ndarray, exclude_bought: bool
    ) -> np.ndarray:
        """Scores of some items by which the mixture ranks, from those of `System.score_candidates` [users, k]."""
        ...

    def pack(self, proposals: Any) -> dict[str, np.ndarray]:
        """Return proposals as arrays, for a file."""
        ...

    def unpack(self, parts: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray]]]) -> Any:
        """Join parts of the proposals: (row numbers, what `pack` returned), all rows once."""
        ...


# (data set, how to count, content or None, how many items of each join the beams, batch size) -> mixture
MakeMixture = Callable[[Dataset, TransitionSettings, Content | None, int, int], Mixture]


@dataclass(frozen=True)
class MixtureRecipe:
    """What a mixture is made of, so that it can be made on another machine.

    Attributes:
        make: makes it.
        transitions: how to count.
        content: how the texts of a history are read; None: without texts.
        top, batch_size: as for `MakeMixture`.
    """

    make: MakeMixture
    transitions: TransitionSettings
    content: ContentSettings | None
    top: int
    batch_size: int

    def open(self, dataset: Dataset, content: Content | None) -> Mixture:
        """Make the mixture from the data set that is counted, and the texts, unless it is without texts."""
        return self.make(dataset, self.transitions, content if self.content else None, self.top, self.batch_size)


def rank_examples(
    system: System,
    examples: Examples,
    beam_width: int,
    exclude_bought: bool,
    constrained: bool = True,
    batch_size: int = 256,
    title: str = "",
) -> Ranked:
    """Rank items for all examples with a system, in batches of like lengths.

    Args:
        system: the system.
        examples: with full histories.
        beam_width, exclude_bought, constrained: as for `System.rank`.
        batch_size: users at once.
        title: of the progress bar (default: the system's name).
    """
    items = np.full((len(examples), beam_width), PAD)
    scores = np.full(items.shape, -np.inf)
    started = time.time()
    for rows, histories in batches(examples, batch_size, title or system.name):
        ranked, log_probs = system.rank(histories, beam_width, exclude_bought, constrained)
        items[rows, : ranked.shape[1]], scores[rows, : log_probs.shape[1]] = ranked, log_probs
    return Ranked(items, scores, time.time() - started)


def batches(examples: Examples, batch_size: int, title: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over rows and their histories, in batches of like lengths, with a progress bar."""
    total = -(-len(examples) // batch_size)
    parts = batches_by_length(examples.histories, batch_size)
    yield from progress_bar(parts, total=total, desc=title, unit="batch", leave=False)


def exact_scores(system: System, histories: np.ndarray, exclude_bought: bool) -> np.ndarray:
    """Score all items exactly, −∞ for those that may not be recommended [users, n_items]."""
    starts = range(0, len(histories), EXACT_BATCH)
    bar = progress_bar(starts, desc=f"{system.name}, all items", unit="batch", leave=False)
    parts = [system.score_all(histories[start : start + EXACT_BATCH], exclude_bought) for start in bar]
    scores = np.concatenate(parts)
    if exclude_bought:
        mask_history(scores, histories, -np.inf)
    return scores
