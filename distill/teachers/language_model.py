"""A language model behind an engine as a teacher."""

from __future__ import annotations

from typing import Any

import numpy as np

from distill.data.dataset import PAD, Dataset, Examples, batches_by_length
from distill.labels.labeller import LabelRequest, Labels, Progress, correct, target_ranks
from distill.teachers.engine import Engine, Scope


class EngineLabeller:
    """Labels examples by a language model. Implements `Labeller`.

    Args:
        engine: runs the model.
        dataset: the sequences; a teacher with the prompt "stream" reads a user's whole sequence at once.
        batch_size: examples of a forward pass.
    """

    def __init__(self, engine: Engine, dataset: Dataset, batch_size: int = 64):
        self.engine, self.dataset, self.batch_size = engine, dataset, batch_size

    def label(self, examples: Examples, request: LabelRequest, progress: Progress) -> Labels:
        """As `Labeller.label`."""
        n = len(examples)
        candidates, scores = np.empty((n, request.keep), np.int64), np.empty((n, request.keep), np.float32)
        ranks, invalid = np.empty(n, np.int32), np.empty(n, np.int32)
        log_probs = self.distributions(examples, request.scope)
        target_scores = self._target_scores(log_probs, examples.targets)
        for rows, histories in batches_by_length(examples.histories, self.batch_size):
            targets = examples.targets[rows]
            beams, beam_scores = self.engine.beams(
                histories, request.width, request.exclude_bought, request.constrained
            )
            invalid[rows] = 0 if request.constrained else (beams == PAD).sum(1)
            ranks[rows] = target_ranks(beams, targets)
            if request.exclude_bought and not request.constrained:  # a constrained search has excluded them
                beams = np.where((beams[:, :, None] == histories[:, None, :]).any(2), PAD, beams)
            candidates[rows], scores[rows] = correct(beams, beam_scores, targets, target_scores[rows], request.keep)
            progress(len(rows))
        return Labels(candidates, scores, log_probs, ranks, invalid)

    def log_prob(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        """As `Labeller.log_prob`; an engine with `score_candidates` reads a history once for all of its items."""
        log_probs = np.empty(items.shape, np.float32)
        for rows, histories in batches_by_length(examples.histories, self.batch_size):
            if hasattr(self.engine, "score_candidates"):
                log_probs[rows] = self.engine.score_candidates(histories, items[rows])
                continue
            for column in range(items.shape[1]):
                targets = np.maximum(items[rows, column], 0)
                codewords = as_numpy(self.engine.codeword_logprobs(histories, targets))
                log_probs[rows, column] = self._target_scores(codewords, targets)
        return np.where(items == PAD, -np.inf, log_probs)

    def facts(self) -> dict[str, Any]:
        """Return the engine's facts, and the prompt."""
        return {**self.engine.facts(), "prompt": self.engine.prompt}

    def counters(self) -> dict[str, int]:
        """Return the engine's counters: `tokens`, perhaps `cached_tokens` among them."""
        return self.engine.counters

    def distributions(self, examples: Examples, scope: Scope = "level") -> np.ndarray:
        """Compute the teacher-forced log-probabilities of the targets' codewords, float32 [n, levels, V].

        With the prompt "stream" one forward pass labels all targets of a user whose prefixes fit into the history; the
        numbers are those of one prompt a prefix. Longer prefixes and other prompts are run one by one.
        """
        ids = self.engine.data.ids
        size = ids.codebook_size * (ids.levels if scope == "all" else 1)
        log_probs = np.empty((len(examples), ids.levels, size), np.float32)
        in_stream = (examples.positions <= self.engine.data.max_history) & (self.engine.prompt == "stream")
        self._label_streams(examples, np.flatnonzero(in_stream), scope, log_probs)
        self._label_prompts(examples, np.flatnonzero(~in_stream), scope, log_probs)
        return log_probs

    def _label_streams(self, examples: Examples, rows: np.ndarray, scope: Scope, log_probs: np.ndarray) -> None:
        """Fill `log_probs[rows]` by one forward pass over the sequence of each user."""
        users, first = np.unique(examples.users[rows], return_index=True)  # a user's examples are neighbours
        last = np.append(first[1:], len(rows))[: len(first)] - 1
        lengths = examples.positions[rows][last] + 1
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            sequences = np.full((len(batch), lengths[batch].max()), PAD, np.int64)
            for row, user in enumerate(batch):
                sequences[row, : lengths[user]] = self.dataset.sequence(users[user])[: lengths[user]]
            batch_log_probs = as_numpy(self.engine.stream_logprobs(sequences, scope))
            for row, user in enumerate(batch):
                user_rows = rows[first[user] : last[user] + 1]
                log_probs[user_rows] = batch_log_probs[row, examples.positions[user_rows]]

    def _label_prompts(self, examples: Examples, rows: np.ndarray, scope: Scope, log_probs: np.ndarray) -> None:
        """Fill `log_probs[rows]` by one prompt an example."""
        for batch, histories in batches_by_length(examples.histories[rows], self.batch_size):
            batch_rows = rows[batch]
            values = self.engine.codeword_logprobs(histories, examples.targets[batch_rows], scope)
            log_probs[batch_rows] = as_numpy(values)

    def _target_scores(self, log_probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Sum the log-probabilities of the targets' codewords: log P(v|S) [n]."""
        ids = self.engine.data.ids
        codes = ids.codes[targets]
        if log_probs.shape[2] != ids.codebook_size:  # scope "all": the levels' codewords side by side
            codes = codes + np.arange(ids.levels) * ids.codebook_size
        return np.take_along_axis(log_probs, codes[..., None], axis=2)[..., 0].sum(1)


def as_numpy(values: Any) -> np.ndarray:
    """Convert a tensor on any device, or an array, to an array."""
    return values.cpu().numpy() if hasattr(values, "cpu") else np.asarray(values)
