"""A language model behind an engine as a teacher."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np

from distill.data.dataset import PAD, Dataset, Examples, batches_by_length
from distill.labels.encodings import encode_states
from distill.labels.labeller import (
    LAST_LAYER,
    LabelRequest,
    Labels,
    Progress,
    concatenate_labels,
    correct,
    target_ranks,
)
from distill.teachers.engine import Engine, PrefixEngine, Scope, StateEngine

Results = tuple[np.ndarray, np.ndarray, np.ndarray]  # items, scores, log-probabilities of codewords


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
        rows_of_batches, labels = [], []
        for rows, results in self._batches(examples, request):
            rows_of_batches.append(rows)
            labels.append(self._corrected(examples.take(rows), results, request))
            progress(len(rows))
        joined = concatenate_labels(labels, np.argsort(np.concatenate(rows_of_batches)))
        if not request.features:
            return joined
        return replace(joined, states=self.states(examples, request.features, request.feature_layers))

    def states(self, examples: Examples, features: int, layers: tuple[int, ...] = LAST_LAYER) -> np.ndarray:
        """Compute the hidden states before each codeword of the targets, projected and encoded.

        The projection is the same Gaussian one for every teacher of that width, and for all of its layers.

        Args:
            examples: n examples.
            features: numbers of a state.
            layers: whose states are taken, from 1.

        Returns:
            uint8 [n, levels, layers, features].
        """
        engine = cast(StateEngine, self.engine)
        projected = np.empty((len(examples), self.engine.data.ids.levels, len(layers), features), np.float32)

        def project(states: Any) -> np.ndarray:
            values = states.float().cpu().numpy()
            return values @ gaussian_projection(values.shape[-1], features)

        in_stream = self._in_stream(examples)
        users = UserRows(examples, np.flatnonzero(in_stream))
        for start in range(0, len(users.order), self.batch_size):
            sequences, rows, row = users.batch(self.dataset, users.order[start : start + self.batch_size])
            states = engine.stream_states(sequences, layers)
            projected[rows] = project(states[row, examples.positions[rows]])
        separate = np.flatnonzero(~in_stream)
        for batch, histories in batches_by_length(examples.histories[separate], self.batch_size):
            projected[separate[batch]] = project(
                engine.codeword_states(histories, examples.targets[separate[batch]], layers)
            )
        return encode_states(projected)

    def _batches(self, examples: Examples, request: LabelRequest) -> Iterator[tuple[np.ndarray, Results]]:
        """Yield rows of the examples, each in one batch, and what the engine computes for them."""
        shared = self._in_stream(examples) & getattr(self.engine, "shares_prefixes", False)
        yield from self._from_streams(examples, np.flatnonzero(shared), request)
        separate = np.flatnonzero(~shared)
        log_probs = self.distributions(examples.take(separate), request.scope)
        for batch, histories in batches_by_length(examples.histories[separate], self.batch_size):
            beams, scores = self.engine.beams(histories, request.width, request.exclude_bought, request.constrained)
            yield separate[batch], (beams, scores, log_probs[batch])

    def _corrected(self, examples: Examples, results: Results, request: LabelRequest) -> Labels:
        """Correct the beams of examples."""
        beams, scores, log_probs = results
        invalid = np.zeros(len(beams)) if request.constrained else (beams == PAD).sum(1)
        ranks = target_ranks(beams, examples.targets)
        if request.exclude_bought and not request.constrained:  # a constrained search has excluded them
            beams = np.where((beams[:, :, None] == examples.histories[:, None, :]).any(2), PAD, beams)
        target_scores = self._target_scores(log_probs, examples.targets)
        candidates, scores = correct(beams, scores, examples.targets, target_scores, request.keep)
        return Labels(candidates, scores, log_probs, ranks, invalid.astype(np.int32))

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
        in_stream = self._in_stream(examples)
        self._label_streams(examples, np.flatnonzero(in_stream), scope, log_probs)
        self._label_prompts(examples, np.flatnonzero(~in_stream), scope, log_probs)
        return log_probs

    def _in_stream(self, examples: Examples) -> np.ndarray:
        """Tell which examples one pass over their user's sequence labels: bool [n]."""
        return (examples.positions <= self.engine.data.max_history) & (self.engine.prompt == "stream")

    def _label_streams(self, examples: Examples, rows: np.ndarray, scope: Scope, log_probs: np.ndarray) -> None:
        """Fill `log_probs[rows]` by one forward pass over the sequence of each user."""
        users = UserRows(examples, rows)
        for start in range(0, len(users.order), self.batch_size):
            sequences, batch_rows, row = users.batch(self.dataset, users.order[start : start + self.batch_size])
            batch_log_probs = as_numpy(self.engine.stream_logprobs(sequences, scope))
            log_probs[batch_rows] = batch_log_probs[row, examples.positions[batch_rows]]

    def _from_streams(
        self, examples: Examples, rows: np.ndarray, request: LabelRequest
    ) -> Iterator[tuple[np.ndarray, Results]]:
        """Search after every history and read the distributions from one pass over each user's sequence.

        A batch is whole users with about `batch_size` examples.
        """
        engine, users = cast(PrefixEngine, self.engine), UserRows(examples, rows)
        ends = np.cumsum(users.counts[users.order])
        for batch in np.split(users.order, np.flatnonzero(np.diff(ends // self.batch_size)) + 1):
            if not len(batch):
                continue
            sequences, batch_rows, row = users.batch(self.dataset, batch)
            beams, scores, log_probs = engine.label_streams(
                sequences,
                row,
                examples.positions[batch_rows],
                request.width,
                request.exclude_bought,
                request.constrained,
                request.scope,
            )
            yield batch_rows, (beams, scores, as_numpy(log_probs))

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


@functools.cache
def gaussian_projection(size: int, features: int) -> np.ndarray:
    """Draw the matrix that projects states of a width [size, features], always the same one."""
    return np.random.default_rng(0).standard_normal((size, features), dtype=np.float32)


class UserRows:
    """Examples by user.

    Args:
        examples: a user's are neighbours.
        rows: the examples that count.

    Attributes:
        users: user numbers [users].
        counts: examples of each user [users].
        order: rows of `users`, those with the shortest sequences first [users].
    """

    def __init__(self, examples: Examples, rows: np.ndarray):
        self.rows = rows
        self.users, self.first, self.counts = np.unique(examples.users[rows], return_index=True, return_counts=True)
        last = self.first + self.counts - 1
        self.lengths = examples.positions[rows][last] + 1  # items up to the last target
        self.order = np.argsort(self.lengths, kind="stable")

    def batch(self, dataset: Dataset, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Collect the sequences and examples of some users.

        Args:
            dataset: the sequences.
            batch: rows of `users`.

        Returns:
            Sequences padded with -1 on the right [users, length]; the users' examples, and for each the row of its
            sequence; both [examples].
        """
        sequences = np.full((len(batch), self.lengths[batch].max()), PAD, np.int64)
        for row, user in enumerate(batch):
            sequences[row, : self.lengths[user]] = dataset.sequence(self.users[user])[: self.lengths[user]]
        spans = [self.rows[self.first[user] : self.first[user] + self.counts[user]] for user in batch]
        return sequences, np.concatenate(spans), np.repeat(np.arange(len(batch)), self.counts[batch])


def as_numpy(values: Any) -> np.ndarray:
    """Convert a tensor on any device, or an array, to an array."""
    return values.cpu().numpy() if hasattr(values, "cpu") else np.asarray(values)
