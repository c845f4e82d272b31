"""Teachers that are asked during a student's training: codeword distributions of given items, by teacher forcing."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from cachetools import LRUCache

from distill.data.histories import last_items
from distill.runtime.logs import log
from distill.teachers.engine import Engine


class ForcedTeacher(Protocol):
    """A teacher that scores the items which a student chose."""

    def codeword_log_probs(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Compute the log-probabilities of each level's codewords along the items' IDs.

        Args:
            histories: item numbers, oldest first, padded with -1 on the right [n, length].
            items: item numbers [n].

        Returns:
            float16 [n, levels, codebook_size], normalised over the teacher's whole vocabulary.
        """


class EngineTeacher:
    """A language model in this process. Implements `ForcedTeacher`.

    Args:
        engine: runs the model.
        batch_size: examples of a forward pass.
    """

    def __init__(self, engine: Engine, batch_size: int = 64):
        self.engine, self.batch_size = engine, batch_size

    def codeword_log_probs(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """As `ForcedTeacher.codeword_log_probs`."""
        recent = last_items(histories, self.engine.data.max_history)
        parts = []
        for start in range(0, len(items), self.batch_size):
            rows = slice(start, start + self.batch_size)
            part = self.engine.codeword_logprobs(recent[rows], items[rows])
            parts.append(part.float().cpu().numpy().astype(np.float16))
        return np.concatenate(parts)


class CachedTeacher:
    """Asks a teacher once for each history and item. Implements `ForcedTeacher`.

    Args:
        teacher: who is asked.
        limit: bytes of answers that are kept; the ones not used for longest go first.

    Attributes:
        asked, answered: examples so far, and those among them that were kept.
    """

    def __init__(self, teacher: ForcedTeacher, limit: int = 1 << 30):
        self.teacher = teacher
        self.asked = self.answered = 0
        self.kept: LRUCache[bytes, np.ndarray] = LRUCache(limit, getsizeof=lambda answer: answer.nbytes)

    def codeword_log_probs(self, histories: np.ndarray, items: np.ndarray) -> np.ndarray:
        """As `ForcedTeacher.codeword_log_probs`."""
        keys = [
            np.append(history[history >= 0], item).astype(np.int64).tobytes()
            for history, item in zip(histories, items, strict=True)
        ]
        new = {key: row for row, key in enumerate(keys) if key not in self.kept}
        answers = {key: self.kept[key] for key in keys if key in self.kept}
        self.asked, self.answered = self.asked + len(keys), self.answered + len(keys) - len(new)
        if new:
            rows = list(new.values())
            fresh = self.teacher.codeword_log_probs(histories[rows], items[rows])
            for key, answer in zip(new, fresh, strict=True):
                answers[key] = self.kept[key] = answer.copy()  # not a view of the whole batch's answer
        return np.stack([answers[key] for key in keys])

    def log_questions(self) -> None:
        """Log how many questions this process had, and how many of them the teacher was spared."""
        share, kept = self.answered / max(self.asked, 1), self.kept.currsize / 2**20
        log.info(f"teacher: {self.asked:,} questions, {share:.0%} answered before; {kept:,.0f} MiB kept")
