"""A language model behind an engine as a teacher."""

from __future__ import annotations

import numpy as np

from distill.data.dataset import PAD, Dataset, Examples, batches_by_length
from distill.labels.labeller import LabelRequest, Labels, Progress, correct
from distill.teachers.engine import Engine


class EngineLabeller:
    """A language model as a teacher.

    Args:
        engine: runs the model.
        dataset: the sequences; a teacher asked with "stream" reads a user's whole sequence at once.
        batch_size: examples a forward pass.
    """

    def __init__(self, engine: Engine, dataset: Dataset, batch_size: int = 64):
        self.engine, self.dataset, self.batch_size = engine, dataset, batch_size

    def label(self, examples: Examples, ask: LabelRequest, progress: Progress) -> Labels:
        n = len(examples)
        candidates, scores = np.empty((n, ask.keep), np.int64), np.empty((n, ask.keep), np.float32)
        ranks, invalid = np.empty(n, np.int32), np.empty(n, np.int32)
        log_probs = self.distributions(examples, ask.scope)
        target_scores = self._of_targets(log_probs, examples.targets)
        for rows, histories in batches_by_length(examples.histories, self.batch_size):
            beams, beam_scores = self.engine.beams(histories, ask.width, ask.exclude_bought, ask.constrained)
            targets = examples.targets[rows]
            invalid[rows] = 0 if ask.constrained else (beams == PAD).sum(1)
            found = beams == targets[:, None]
            ranks[rows] = np.where(found.any(1), found.argmax(1), -1)
            if ask.exclude_bought and not ask.constrained:
                beams = np.where((beams[:, :, None] == histories[:, None, :]).any(2), PAD, beams)
            candidates[rows], scores[rows] = correct(beams, beam_scores, targets, target_scores[rows], ask.keep)
            progress(len(rows))
        return Labels(candidates, scores, log_probs, ranks, invalid)

    def log_prob(self, examples: Examples, items: np.ndarray) -> np.ndarray:
        if hasattr(self.engine, "score_candidates"):  # all of a history's items share one prompt
            found = np.empty(items.shape, np.float32)
            for rows, histories in batches_by_length(examples.histories, self.batch_size):
                found[rows] = self.engine.score_candidates(histories, items[rows])
            return found
        known = items != PAD
        found = np.full(items.shape, -np.inf, np.float32)
        for rows, histories in batches_by_length(examples.histories, self.batch_size):
            for column in range(items.shape[1]):
                asked = np.where(known[rows, column], items[rows, column], 0)
                log_probs = as_numpy(self.engine.codeword_logprobs(histories, asked))
                found[rows, column] = self._of_targets(log_probs, asked)
        return np.where(known, found, -np.inf)

    def facts(self) -> dict:
        return {**self.engine.facts(), "prompt": self.engine.prompt}

    def counters(self) -> dict[str, int]:
        """What the engine has counted so far: `tokens`, perhaps `cached_tokens` among them."""
        return self.engine.counters

    def distributions(self, examples: Examples, scope: str = "level") -> np.ndarray:
        """Teacher-forced log-probabilities [n, levels, V].

        A teacher asked with `stream` labels all of a user's targets in one forward pass; the numbers are those of one
        prompt a prefix, as long as the prefix fits the history. Longer ones, and other prompts, go prefix by prefix.
        """
        ids, longest = self.engine.data.ids, self.engine.data.max_history
        size = ids.codebook_size * (ids.levels if scope == "all" else 1)
        log_probs = np.empty((len(examples), ids.levels, size), np.float32)
        at_once = (examples.positions <= longest) & (self.engine.prompt == "stream")
        users, first = np.unique(examples.users[at_once], return_index=True)
        last = np.append(first[1:], at_once.sum())[: len(first)] - 1  # examples of a user stand together, by position
        lengths = examples.positions[at_once][last] + 1
        where = np.flatnonzero(at_once)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            sequences = np.full((len(rows), lengths[rows].max()), PAD, np.int64)
            for place, row in enumerate(rows):
                sequences[place, : lengths[row]] = self.dataset.sequence(users[row])[: lengths[row]]
            batch = as_numpy(self.engine.stream_logprobs(sequences, scope))
            for place, row in enumerate(rows):
                mine = where[first[row] : last[row] + 1]
                log_probs[mine] = batch[place, examples.positions[mine]]
        rest = np.flatnonzero(~at_once)
        for part, histories in batches_by_length(examples.histories[rest], self.batch_size):
            rows = rest[part]
            answer = self.engine.codeword_logprobs(histories, examples.targets[rows], scope)
            log_probs[rows] = as_numpy(answer)
        return log_probs

    def _of_targets(self, log_probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """log P(v|S) of the forced items [n]."""
        ids = self.engine.data.ids
        codes = ids.codes[targets]
        if log_probs.shape[2] != ids.codebook_size:  # all levels' codewords side by side
            codes = codes + np.arange(ids.levels) * ids.codebook_size
        return np.take_along_axis(log_probs, codes[..., None], axis=2)[..., 0].sum(1)


def as_numpy(values) -> np.ndarray:
    """A tensor of any device, or an array, as an array."""
    return values.cpu().numpy() if hasattr(values, "cpu") else np.asarray(values)
