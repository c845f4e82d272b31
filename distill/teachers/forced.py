"""Teachers that are asked during a student's training: codeword distributions of given items, by teacher forcing."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import numpy as np

from distill.data.histories import last_items
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
        self.teacher, self.limit = teacher, limit
        self.asked = self.answered = self.bytes = 0
        self.kept: OrderedDict[bytes, np.ndarray] = OrderedDict()

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
            answers |= dict(zip(new, fresh, strict=True))
        for key, answer in answers.items():
            self._keep(key, answer)
        return np.stack([answers[key] for key in keys])

    def _keep(self, key: bytes, answer: np.ndarray) -> None:
        if key not in self.kept:
            self.kept[key] = answer.copy()  # not a view of the whole batch's answer
            self.bytes += len(key) + answer.nbytes
        self.kept.move_to_end(key)
        while self.bytes > self.limit:
            oldest, dropped = self.kept.popitem(last=False)
            self.bytes -= len(oldest) + dropped.nbytes
