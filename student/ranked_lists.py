"""The candidates that the ranking loss orders: those of the soft labels, or of a second set of labels (Appendix B)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from distill import losses
from distill.data.dataset import PAD, Examples
from distill.data.examples import TargetRanges
from distill.labels.store import LabelBlock, LabelStore
from distill.runtime.errors import UserError


class ExampleIndex:
    """Find the training examples of a data set by user and position.

    Args:
        targets: of the training split.
    """

    def __init__(self, targets: TargetRanges):
        self._targets = targets

    def __len__(self) -> int:
        return len(self._targets)

    def take(self, numbers: np.ndarray) -> Examples:
        """Make the examples of these numbers."""
        return self._targets.take(numbers)

    def user_bounds(self, size: int) -> np.ndarray:
        """Cut the examples into parts of whole users with about `size` examples: the parts' bounds, from 0 on."""
        ends = self._targets.ends
        cuts = ends[np.searchsorted(ends, np.arange(size, len(self), size))]
        return np.unique(np.concatenate([[0], cuts, [len(self)]]))

    def find(self, users: np.ndarray, positions: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up examples.

        Returns:
            Their numbers, of another one where there is none [n], and which of them exist with that target [n].
        """
        rows = self._targets.find(users, positions)  # -1: none
        numbers = np.maximum(rows, 0)
        return numbers, (rows >= 0) & (self.take(numbers).targets == targets)

    def find_labelled(
        self, users: np.ndarray, positions: np.ndarray, targets: np.ndarray, labels: LabelStore
    ) -> np.ndarray:
        """Look up the numbers of labelled examples [n].

        Raises:
            UserError: some are no training examples; the message names the labels.
        """
        numbers, known = self.find(users, positions, targets)
        if not known.all():
            raise UserError(
                f"{labels.artifact.folder} labels targets that are no training examples of this data set: "
                "another data set, or another split of it."
            )
        return numbers


class PriorLists:
    """The candidates of a second set of labels, by training example; they are small, so in memory.

    Args:
        prior: the second set.
        labels: the soft labels, each of whose examples the prior must cover.
        index: the training examples.
        k: candidates per example.

    Raises:
        UserError: examples that the prior lacks.
    """

    def __init__(self, prior: LabelStore, labels: LabelStore, index: ExampleIndex, k: int):
        columns = prior.read("user", "position", "target", "candidates", "candidate_scores")
        numbers, known = index.find(columns["user"], columns["position"], columns["target"])
        self.candidates = np.full((len(index), k), PAD, np.int32)
        self.candidates[numbers[known]] = columns["candidates"][known, :k]
        self.scores = np.full((len(index), k), -np.inf, np.float32)
        self.scores[numbers[known]] = columns["candidate_scores"][known, :k]
        self.ranks = np.zeros(len(index), np.int64)
        self.ranks[numbers[known]] = reference_ranks(columns["candidate_scores"][known], k)
        refuse_gaps(self.candidates[:, 0] == PAD, prior, labels, index)  # the reference comes first


def plain_scores(plain: LabelStore, labels: LabelStore, index: ExampleIndex) -> np.ndarray:
    """Read a plain teacher's log P(v|S) of the real next items, by training example [n].

    Raises:
        UserError: examples of the soft labels that it lacks.
    """
    columns = plain.read("user", "position", "target", "candidate_scores")
    numbers, known = index.find(columns["user"], columns["position"], columns["target"])
    scores = np.full(len(index), np.nan, np.float32)
    scores[numbers[known]] = columns["candidate_scores"][known, 0]  # the reference comes first
    refuse_gaps(np.isnan(scores), plain, labels, index)
    return scores


def refuse_gaps(lacking: np.ndarray, others: LabelStore, labels: LabelStore, index: ExampleIndex) -> None:
    """Refuse a second set of labels that does not cover the soft labels' examples.

    Args:
        lacking: of which training examples it has none [n].
        others: the second set.
        labels: the soft labels.
        index: the training examples.

    Raises:
        UserError: names the first gap.
    """
    wanted = labels.read("user", "position", "target")
    numbers, _ = index.find(wanted["user"], wanted["position"], wanted["target"])  # the sampler checks the match
    gaps = lacking[numbers]
    if gaps.any():
        first = gaps.argmax()
        raise UserError(
            f"{others.artifact.folder} lacks {gaps.sum():,} of the {len(gaps):,} examples of "
            f"{labels.artifact.folder}, first the item at {wanted['position'][first]} of user "
            f"{wanted['user'][first]}; export it again, of the training split and without --limit or --users."
        )


def open_prior(folder: Path, teacher: str) -> LabelStore:
    """Open the labels whose candidates are ranked in place of the soft labels'.

    Args:
        folder: a soft_labels artifact.
        teacher: who must have made them: distance, statistics or mixture.

    Raises:
        UserError: labels of another teacher, or labels that cannot be read.
    """
    store = LabelStore.open(folder)
    if store.teacher != teacher:
        raise UserError(
            f"--prior {teacher}, but {folder} holds the labels of {store.teacher or 'a language model'}; "
            "name another --prior_labels."
        )
    return store


def reference_ranks(scores: np.ndarray, k: int) -> np.ndarray:
    """`losses.reference_rank` among the first k candidates, the reference first [n, any] → [n]."""
    return losses.reference_rank(torch.from_numpy(scores[:, :k])).numpy()


def pick_target(block: LabelBlock, rows: np.ndarray, which: str, draws: np.ndarray) -> np.ndarray:
    """Pick an item of each teacher's list as the target (alignment study, 4.6).

    Args:
        block: labels.
        rows: rows of the block [n].
        which: "top", the teacher's first, or "random", any.
        draws: random numbers in [0, 1) [n].

    Returns:
        Item numbers [n].
    """
    return item_of_list(block.candidates(rows).astype(np.int64), block.scores(rows), which, draws)


def item_of_list(lists: np.ndarray, scores: np.ndarray, which: str, draws: np.ndarray) -> np.ndarray:
    """`pick_target` from item numbers, PAD for none [n, k], and scores, −∞ for none [n, k].

    The reference comes first in a list even where the teacher's beams lack it. It may be drawn only where the teacher
    scores it above another candidate; otherwise it was put there, and the draw is among the others.
    """
    rows = np.arange(len(lists))
    if which == "top":
        return lists[rows, scores.argmax(1)]
    count = (lists != PAD).sum(1)
    lowest_other = np.where(lists[:, 1:] == PAD, np.inf, scores[:, 1:]).min(1, initial=np.inf)
    skipped = (scores[:, 0] < lowest_other) & (count > 1)
    return lists[rows, skipped + np.floor(draws * (count - skipped)).astype(np.int64)]
