"""Batches of a codeword student, the same whatever the number of processes.

Every loss is a mean over a *global batch*: what all processes train between two optimiser steps. Every process lays out
the same global batch and takes its share of the rows. Random draws depend only on seed, epoch and number of the batch,
so neither the number of processes nor a restart in the middle of an epoch changes them.

A row is one example (`seq2seq`) or, in one pass (`causal`, `nested`), a window of a user's sequence with all its
targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from distill import losses
from distill.data.dataset import PAD, Dataset
from distill.labels.store import LabelBlock, LabelStore
from distill.runtime.errors import UserError
from student.augment import drop_items, drop_items_with_targets, reverse_and_shuffle
from student.batch import Batch, GlobalBatch
from student.config import SamplerSettings
from student.layout import (
    Layout,
    bucket_by_length,
    examples_of_rows,
    group_by_row,
    layout_rows,
    read_rows,
    sample_position,
    shard_rows,
)
from student.pseudo_ids import PseudoIDs
from student.ranked_lists import ExampleIndex, PriorLists, pick_target, plain_scores, reference_ranks
from student.variants import Loss

EXAMPLES_AT_ONCE = 1 << 22  # in memory together, some 200 bytes each, where there are no labels


class BatchSampler:
    """The training examples of one phase, epoch by epoch.

    Args:
        dataset: the sequences.
        store: the labels; None where the loss needs none.
        loss: of the phase.
        one_pass: whether rows are windows of users' sequences.
        settings: size and order of batches, augmentation, weights.
        process, processes: number of this process, and how many there are.
        prior: labels whose candidates are ranked in place of the store's, or pseudo-IDs (`loss.pseudo`); all else
            stays the store's (Appendix B).
        plain: labels of a plain teacher; where it knows the target as well, only the target is learnt.

    Attributes:
        total: examples per epoch, on all processes.

    Raises:
        UserError: labels of another split, fewer candidates than asked for, examples that the prior lacks, or no
            examples at all.
    """

    def __init__(
        self,
        dataset: Dataset,
        store: LabelStore | None,
        loss: Loss,
        one_pass: bool,
        settings: SamplerSettings,
        process: int = 0,
        processes: int = 1,
        prior: LabelStore | PseudoIDs | None = None,
        plain: LabelStore | None = None,
    ):
        self.dataset, self.store, self.loss, self.one_pass, self.settings = dataset, store, loss, one_pass, settings
        self.process, self.processes = process, processes
        self.index = ExampleIndex(dataset.targets("train", 1))
        self.total = len(self.index) if store is None else store.rows
        check_labels(store, self.total)
        self.pseudo_ids = prior if loss.pseudo else None
        self.prior = None
        if loss.ranks_labels:
            check_candidates(prior or store, settings.candidates)
            self.prior = PriorLists(prior, store, self.index, settings.candidates) if prior else None
        self.state_mean = mean_states(store) if settings.feature_weight and loss.generative == "distill" else None
        self.plain = plain_scores(plain, store, self.index) if plain and store else None

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield this process's parts of an epoch's global batches, without the first `skip` of these.

        Every example comes once, whatever the number of processes. A part may be a row of weight 0, so that no process
        waits for another that has nothing left.
        """
        settings, number = self.settings, 0
        size = settings.batch_size * self.processes * settings.accumulation
        for block_number, (block, numbers, label_rows) in enumerate(self._blocks(epoch)):
            examples = self.index.take(numbers)
            keys = examples.users, examples.positions
            longest, strided = settings.max_history, settings.long_histories == "windows"
            layout = layout_rows(*keys, self.dataset.offsets, longest, self.one_pass, strided)
            seed = [settings.seed, epoch] + ([block_number] if self.store is not None or block_number else [])
            for group in bucket_by_length(layout.lengths, size, np.random.default_rng(seed)):
                number += 1
                if number <= skip:
                    continue
                rng = np.random.default_rng([settings.seed, epoch, number, 1])
                global_batch = self._global_batch(block, layout, examples.targets, label_rows, group, rng)
                if self._is_on_policy(epoch, number):
                    global_batch = self._own_prefixes(global_batch, len(group), rng)
                shares = shard_rows(np.arange(len(group)), self.process, self.processes, settings.accumulation)
                for step, rows in enumerate(shares):
                    yield self._local_batch(block, global_batch, rows, last=step == len(shares) - 1)

    def _blocks(self, epoch: int) -> Iterator[tuple[LabelBlock | None, np.ndarray, np.ndarray]]:
        """Yield (labels, numbers of examples, rows of the labels) in memory together, sorted by user and position."""
        rng = np.random.default_rng([self.settings.seed, epoch])
        if self.store is None:
            bounds = self.index.user_bounds(EXAMPLES_AT_ONCE)
            for part in [0] if len(bounds) == 2 else rng.permutation(len(bounds) - 1):
                numbers = np.arange(bounds[part], bounds[part + 1])
                yield None, numbers, numbers - bounds[part]
            return
        for block in self.store.blocks(self.settings.buffer_rows, rng):
            order = np.lexsort((block.positions, block.users))
            keys = block.users[order], block.positions[order], block.targets[order]
            yield block, self.index.find_labelled(*keys, self.store), order

    def _global_batch(
        self,
        block: LabelBlock | None,
        layout: Layout,
        targets: np.ndarray,
        label_rows: np.ndarray,
        group: np.ndarray,
        rng: np.random.Generator,
    ) -> GlobalBatch:
        """Lay out, augment and weight the rows `group` of a layout."""
        sequences = read_rows(self.dataset.values, layout, group)
        examples, rows = examples_of_rows(layout, group)
        places, targets = layout.places[examples], targets[examples]
        label_invalid = np.zeros(len(examples), dtype=bool)
        settings = self.settings
        if settings.drop_items or settings.reverse or settings.shuffle:
            # in one pass a reversed sequence has no ranking loss: with no other loss it would teach nothing
            reverse = settings.reverse if self.loss.generative or not self.one_pass else 0.0
            sequences, is_reversed = reverse_and_shuffle(sequences, reverse, settings.shuffle, rng)
            if self.one_pass:
                label_invalid = is_reversed[rows] & (self.store is not None)
                targets = sequences[rows, places]
                sequences, places, kept = drop_items_with_targets(sequences, rows, places, settings.drop_items, rng)
                examples, rows, places, targets = examples[kept], rows[kept], places[kept], targets[kept]
                label_invalid = label_invalid[kept]
            else:
                sequences = drop_items(sequences, settings.drop_items, rng)
                places = (sequences != PAD).sum(1)
        label_rows = label_rows[examples]
        if block is not None and self.plain is not None:
            known = self.plain[self._examples(block, label_rows)] >= block.scores(label_rows)[:, 0]
            label_invalid = label_invalid | known
        weights, rank_weights = self._weights(block, label_rows, label_invalid)
        rank_total = float(rank_weights.sum())
        if self.one_pass and settings.rank_positions == "one":
            rank_weights = sample_position(rows, rank_weights, len(group), rng)
        draws = rng.random(len(examples))
        pseudo_ids = self.pseudo_ids.draw(targets, rng) if self.pseudo_ids else None
        return GlobalBatch(
            sequences, rows, places, targets, label_rows, label_invalid,
            weights, float(weights.sum()), rank_weights, rank_total, draws, pseudo_ids, on_policy=False,
        )  # fmt: skip

    def _is_on_policy(self, epoch: int, number: int) -> bool:
        """Draw whether a global batch learns from the student's own items."""
        share = self.settings.on_policy if self.loss.generative == "distill" else float(self.loss.own_beams)
        return share > 0 and np.random.default_rng([self.settings.seed, epoch, number, 2]).random() < share

    def _own_prefixes(self, batch: GlobalBatch, n_rows: int, rng: np.random.Generator) -> GlobalBatch:
        """Choose where the student proposes an item: in one pass at one place of each row, otherwise at all."""
        weights = np.ones(len(batch.rows))
        if self.one_pass:
            weights = sample_position(batch.rows, weights, n_rows, rng)
        valid, total = np.zeros(len(batch.rows), dtype=bool), float(weights.sum())
        ranked = (weights, total) if self.loss.own_beams else (np.zeros(len(batch.rows)), 0.0)
        return replace(
            batch, weights=weights, total=total, label_invalid=valid, rank_weights=ranked[0], rank_total=ranked[1],
            on_policy=True,
        )  # fmt: skip

    def _weights(
        self, block: LabelBlock | None, label_rows: np.ndarray, label_invalid: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weight examples of the generative loss and of the ranking loss, both [n]."""
        weights, settings = np.ones(len(label_rows)), self.settings
        if block is None:
            return weights, weights if self.loss.rank else np.zeros(len(label_rows))
        confidence = weights
        if settings.confidence:
            ranks = reference_ranks(block.scores(label_rows), settings.candidates)
            confidence = losses.confidence(torch.from_numpy(ranks), settings.confidence).numpy()
            if self.loss.generative_needs_labels:  # tiger and dwr-without-distill must not depend on the teacher here
                weights = np.where(label_invalid, 1.0, confidence)
        ranked = np.full(len(label_rows), self.loss.rank) & ~label_invalid
        if self.loss.rank and settings.rank_within and not self.loss.pseudo:  # pseudo-IDs: the reference is first
            ranked &= self._ranks(block, label_rows) <= settings.rank_within
        return weights, np.where(ranked, confidence, 0)

    def _ranks(self, block: LabelBlock, label_rows: np.ndarray) -> np.ndarray:
        """Find the rank of the reference in the list that is ranked [n]."""
        if self.prior is None:
            return reference_ranks(block.scores(label_rows), self.settings.candidates)
        return self.prior.ranks[self._examples(block, label_rows)]

    def _candidates(self, block: LabelBlock, label_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the candidates that are ranked, best first, and the log P(v|S) of their teacher; both [n, k]."""
        k = self.settings.candidates
        if self.prior is None:
            return block.candidates(label_rows)[:, :k].astype(np.int64), block.scores(label_rows)[:, :k]
        examples = self._examples(block, label_rows)
        return self.prior.candidates[examples].astype(np.int64), self.prior.scores[examples]

    def _examples(self, block: LabelBlock, label_rows: np.ndarray) -> np.ndarray:
        """Look up the numbers of labelled examples among the training examples [n]."""
        keys = (block.users[label_rows], block.positions[label_rows], block.targets[label_rows])
        return self.index.find(*keys)[0]

    def _local_batch(self, block: LabelBlock | None, global_batch: GlobalBatch, rows: np.ndarray, last: bool) -> Batch:
        """Cut some rows out of a global batch; without any example in them, take the first's row with weight 0."""
        if global_batch.on_policy:
            return self._own_batch(global_batch, rows, last)
        has_examples = bool(np.isin(global_batch.rows, rows).any())  # dropped items may have taken those of all rows
        factor = 1.0 if has_examples else 0.0
        rows = rows if has_examples else global_batch.rows[:1]
        row_number = np.full(len(global_batch.sequences), PAD)
        row_number[rows] = np.arange(len(rows))
        chosen = np.flatnonzero(row_number[global_batch.rows] >= 0)  # examples of these rows
        local_rows, label_rows = row_number[global_batch.rows[chosen]], global_batch.label_rows[chosen]
        sequences = global_batch.sequences[rows]
        rank_weights = global_batch.rank_weights[chosen] * factor
        has_ranked = self.one_pass and self.loss.rank
        arrays = {
            "sequences": sequences[:, : max(1, (sequences != PAD).sum(1).max())],
            "rows": local_rows,
            "places": global_batch.places[chosen],
            "targets": global_batch.targets[chosen],
            "label_invalid": global_batch.label_invalid[chosen],
            "weights": (global_batch.weights[chosen] * factor).astype(np.float32),
            "rank_weights": rank_weights.astype(np.float32),
            "pseudo_ids": None if global_batch.pseudo_ids is None else global_batch.pseudo_ids[chosen],
            "ranked_examples": group_by_row(local_rows, rank_weights, len(rows)) if has_ranked else None,
        }
        if block is not None:
            if self.loss.ranks_labels:
                arrays["candidates"], arrays["candidate_scores"] = self._candidates(block, label_rows)
            if self.loss.generative == "distill":
                arrays["log_probs"] = block.log_probs(label_rows)
                if self.state_mean is not None:
                    arrays["states"] = block.states(label_rows) - self.state_mean
            if self.loss.target != "ref":
                arrays["targets"] = pick_target(block, label_rows, self.loss.target, global_batch.draws[chosen])
        tensors = {name: None if value is None else torch.from_numpy(value) for name, value in arrays.items()}
        sums = {"total": global_batch.total, "rank_total": global_batch.rank_total, "count": len(global_batch.targets)}
        return Batch(**tensors, **sums, last=last, one_pass=self.one_pass)

    def _own_batch(self, global_batch: GlobalBatch, rows: np.ndarray, last: bool) -> Batch:
        """Cut the prefixes of some rows out of a global batch; without any, take the first with weight 0."""
        chosen = np.flatnonzero(np.isin(global_batch.rows, rows) & (global_batch.weights > 0))
        factor = 1.0 if len(chosen) else 0.0
        chosen = chosen if len(chosen) else np.arange(1)
        places, sequences = global_batch.places[chosen], global_batch.sequences[global_batch.rows[chosen]]
        before = np.arange(max(1, places.max())) < places[:, None]
        arrays = {
            "sequences": np.where(before, sequences[:, : before.shape[1]], PAD),
            "rows": np.arange(len(chosen)),
            "places": places,
            "targets": global_batch.targets[chosen],
            "label_invalid": global_batch.label_invalid[chosen],
            "weights": (global_batch.weights[chosen] * factor).astype(np.float32),
            "rank_weights": (global_batch.rank_weights[chosen] * factor).astype(np.float32),
            "draws": global_batch.draws[chosen],
        }
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        return Batch(
            **tensors, total=global_batch.total, rank_total=global_batch.rank_total, ranked_examples=None,
            count=len(global_batch.targets), last=last, one_pass=False, on_policy=True,
        )  # fmt: skip


def mean_states(store: LabelStore | None) -> np.ndarray:
    """Compute the mean of the first shard's states [levels, layers, features]: what all have in common tells nothing.

    Raises:
        UserError: the labels hold no states.
    """
    assert store is not None
    if not store.features:
        raise UserError(f"{store.artifact.folder} holds no hidden states; export with --features 64 for them.")
    return next(store.blocks(1)).states().mean(0)


def check_labels(store: LabelStore | None, total: int) -> None:
    """Refuse labels of another split, and nothing to train.

    Raises:
        UserError: names the labels.
    """
    if store is not None and store.split != "train":
        raise UserError(
            f"{store.artifact.folder} labels the {store.split} split, which no student may see; export with "
            "--split train."
        )
    if not total:
        source = "The data set has" if store is None else f"{store.artifact.folder} labels"
        raise UserError(f"{source} no training example.")


def check_candidates(store: LabelStore, candidates: int) -> None:
    """Refuse labels with fewer candidates than are ranked.

    Raises:
        UserError: names the labels and the command that exports more.
    """
    if store.candidates < candidates:
        raise UserError(
            f"{store.artifact.folder} has {store.candidates} candidates an example, --candidates asks for "
            f"{candidates}; export with --keep {candidates}."
        )


def check_scope(store: LabelStore | None, loss: Loss, scope: str) -> None:
    """Refuse distributions over all levels' codewords where the student's are over each level's own.

    Raises:
        UserError: names the labels.
    """
    if loss.generative == "distill" and store.scope == "all" and scope != "all":
        raise UserError(
            f"{store.artifact.folder} has distributions over all levels' codewords, --scope {scope} asks for each "
            "level's own; train with --scope all, or export with --scope level."
        )
