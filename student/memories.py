"""Memories beside a trained network: what `Recommender` and `ItemRecommender` share."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from distill.runtime.errors import UserError
from student.content_memory import ContentMemory
from student.memory_mixture import Candidates, candidates, score_mixture
from student.transition_memory import TransitionMemory


class WithMemories(ABC):
    """A recommender that mixes a transition memory in, and a content memory beside it.

    Attributes:
        facts: what is saved beside the weights; those of the memories are under "memory" and "content_memory".
        n_items: size of the catalogue.
        max_history: items of a history that the network reads.
        allowed: the only items that may be recommended, a mask [n_items]; None: all (`student.restriction`).
    """

    facts: dict[str, Any]
    transition_memory: TransitionMemory | None = None
    content_memory: ContentMemory | None = None
    allowed: np.ndarray | None = None

    @property
    @abstractmethod
    def n_items(self) -> int: ...

    @property
    @abstractmethod
    def max_history(self) -> int: ...

    @abstractmethod
    def network_lists(
        self, histories: np.ndarray, width: int, exclude_bought: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank by the network alone.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            width: items per list.
            exclude_bought: exclude all items of the history.

        Returns:
            Items, best first, -1 for none, and their log-probabilities; both [users, width].
        """

    @abstractmethod
    def score_candidates(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Score a few items by the network alone.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [users, length].
            items: item numbers, -1 for none [users, k].

        Returns:
            Exact log-probabilities, float32 [users, k], -inf for none.
        """

    def with_transition_memory(self, memory: TransitionMemory | None) -> Self:
        """Return the same student with a transition memory, or without memories; the weights are shared.

        Raises:
            UserError: the memory is of another catalogue.
        """
        if memory is not None and memory.n_items != self.n_items:
            raise UserError(f"The memory is of {memory.n_items} items, the student of {self.n_items}.")
        return self._with_memories(memory, self.content_memory if memory is not None else None)

    def with_content_memory(self, content: ContentMemory | None) -> Self:
        """Return the same student with a content memory beside its transition memory, or without one.

        Raises:
            UserError: there is no transition memory, or the content memory is of another catalogue.
        """
        if content is not None and self.transition_memory is None:
            raise UserError("A content memory needs a transition memory beside it.")
        if content is not None and len(content.vectors) != self.n_items:
            raise UserError(f"The content memory is of {len(content.vectors)} items, the student of {self.n_items}.")
        return self._with_memories(self.transition_memory, content)

    def _with_memories(self, memory: TransitionMemory | None, content: ContentMemory | None) -> Self:
        student = copy.copy(self)
        student.transition_memory, student.content_memory = memory, content
        parts = {"memory": memory, "content_memory": content}
        student.facts = {name: value for name, value in self.facts.items() if name not in parts}
        student.facts |= {name: part.facts() for name, part in parts.items() if part is not None}
        return student

    def save_memories(self, folder: Path) -> None:
        """Write the memories' arrays; `facts` has the rest."""
        for memory in (self.transition_memory, self.content_memory):
            if memory is not None:
                memory.save(folder)

    def load_memories(self, folder: Path) -> Self:
        """Return the same student with the memories that `facts` names, whose arrays `save_memories` wrote."""
        student = self
        if "memory" in self.facts:
            student = student.with_transition_memory(TransitionMemory.load(folder, self.facts["memory"]))
        if "content_memory" in self.facts:
            student = student.with_content_memory(ContentMemory.load(folder, self.facts["content_memory"]))
        return student

    @property
    def active_content(self) -> ContentMemory | None:
        """The content memory, unless it has no weight: then nothing of it is computed."""
        content = self.content_memory
        return content if content is not None and content.weight else None

    def candidates(
        self,
        histories: np.ndarray,
        width: int,
        exclude_bought: bool = True,
        temperatures: Sequence[float] | None = None,
    ) -> Candidates:
        """Collect what the network and the memories propose, with all probabilities.

        Args:
            histories, width, exclude_bought: as for `network_lists`.
            temperatures: of the content's probabilities; None: the content memory's.
        """
        lists, memory = self.network_lists(histories, width, exclude_bought), self.transition_memory
        content = self.active_content
        memories = (memory, histories, exclude_bought, content, temperatures, self.allowed)
        return candidates(lists, self.score_candidates, *memories)

    def ranking_scores(self, histories: np.ndarray, items: np.ndarray, exclude_bought: bool) -> np.ndarray:
        """Score a few items with the memories; arguments as `score_candidates`."""
        log_probs = self.score_candidates(histories, items)
        return self.mixed_scores(log_probs, histories, items, exclude_bought)

    def mixed_scores(
        self, log_probs: np.ndarray, histories: np.ndarray, items: np.ndarray | None, exclude_bought: bool
    ) -> np.ndarray:
        """Mix the memories into the network's log-probabilities, as `score_mixture`; without memories return these."""
        memory = self.transition_memory
        if memory is None:
            return log_probs
        return score_mixture(log_probs, memory, self.active_content, histories, items, exclude_bought)
