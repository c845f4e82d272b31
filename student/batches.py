"""From the data set and the teacher's labels to batches, the same whatever the number of processes.

Every loss is a mean over a *global batch*: what all processes train between two steps of the optimiser. Its rows are
chosen and counted alike everywhere; process r takes every world-th row from the r-th on, and of these accumulation
step a every accumulation-th. Whatever is drawn at random depends on seed, epoch and number of the batch alone, so that
neither the split nor a restart in the middle of an epoch changes it.

A row is an example (`seq2seq`) or, in one pass (`causal`, `nested`), a window of a user's sequence with all its
targets.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distill import losses
from distill.data.dataset import PAD, Dataset
from distill.labels.store import LabelBlock, LabelStore
from distill.runtime.errors import UserError

if TYPE_CHECKING:
    from student.train import Config
    from student.variants import Loss


@dataclass(frozen=True)
class Layout:
    """Rows of examples: which items each reads and where its targets stand.

    Attributes:
        starts: of each row's items in the data set's values [rows].
        lengths: items read; in one pass the last target is among them [rows].
        first: examples of row r are first[r] to first[r + 1] [rows + 1].
        places: items of the row before each example's target [n].
    """

    starts: np.ndarray
    lengths: np.ndarray
    first: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One process's part of one accumulation step.

    Attributes:
        sequences: item numbers, padded with PAD on the right [rows, items].
        rows, places: the row of each example, and the items there before its target [n].
        targets: item numbers [n].
        hard: whether the labels are of another target, that of a sequence turned around: the item alone is taught [n].
        weights: of the generative loss [n]; `total`, of the whole global batch.
        rank_weights: of the ranking loss, 0 where it is left out [n]; `rank_total`, of the whole global batch.
        groups: in one pass, the examples of each row that are ranked, -1 for none [rows, groups].
        count: examples in the whole global batch.
        last: whether the optimiser's step follows.
        one_pass: sequences hold the targets.
        candidates: item numbers, the reference first, PAD for none [n, k].
        log_probs: the teacher's, float16 [n, levels, V].
    """

    sequences: Tensor
    rows: Tensor
    places: Tensor
    targets: Tensor
    hard: Tensor
    weights: Tensor
    total: float
    rank_weights: Tensor
    rank_total: float
    groups: Tensor | None
    count: int
    last: bool
    one_pass: bool
    candidates: Tensor | None = None
    log_probs: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()}
        return Batch(**moved)


def lay_out(
    users: np.ndarray, positions: np.ndarray, offsets: np.ndarray, longest: int, one_pass: bool, strided: bool = True
) -> Layout:
    """Rows of examples that are sorted by user and position.

    Not in one pass, an example is a row: the last `longest` items before its target. In one pass a user is a row, as
    far as histories of all items fit. Targets further on stand in windows that overlap by half: they are trained with
    the last `longest`/2 to `longest` items (`strided`), or each in a row of its own with exactly the last `longest`.

    Args:
        users, positions: of the targets [n].
        offsets: where each user's sequence starts.
        longest: items of history.
        one_pass: see above.
        strided: see above.
    """
    beyond = positions > longest
    if not one_pass:
        window, start = np.arange(len(positions)), np.maximum(positions - longest, 0)
    elif strided:
        half = max(longest // 2, 1)
        window = np.where(beyond, -((longest - positions) // half), 0)
        start = window * half
    else:
        window, start = np.where(beyond, positions, 0), np.where(beyond, positions - longest, 0)
    opens = np.ones(len(users), dtype=bool)
    opens[1:] = (users[1:] != users[:-1]) | (window[1:] != window[:-1])
    first = np.append(np.flatnonzero(opens), len(users))
    places = positions - start
    starts = (offsets[users] + start)[first[:-1]]
    return Layout(starts, places[first[1:] - 1] + one_pass, first, places)


def buckets(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Row numbers of batches of like lengths, in random order."""
    order = np.argsort(lengths + 2 * rng.random(len(lengths)), kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def share(group: np.ndarray, process: int, processes: int, accumulation: int) -> list[np.ndarray]:
    """A process's rows of a global batch, one part an accumulation step; parts may be empty."""
    own = group[process::processes]
    return [own[step::accumulation] for step in range(accumulation)]


class Feed:
    """The training examples of one stage, epoch by epoch.

    Args:
        dataset: has the sequences.
        store: the labels; None where the loss needs none.
        loss: what the stage trains.
        one_pass: rows are windows of users' sequences.
        config: of the command.
        process, processes: this one's number, and how many there are.
        prior: labels whose candidates are ranked in place of the store's; all else stays the store's (Appendix B).

    Attributes:
        total: examples an epoch, on all processes.

    Raises:
        UserError: labels of another split or scope, fewer candidates than asked for, examples that the prior lacks, or
            none at all.
    """

    def __init__(
        self,
        dataset: Dataset,
        store: LabelStore | None,
        loss: Loss,
        one_pass: bool,
        config: Config,
        process: int = 0,
        processes: int = 1,
        prior: LabelStore | None = None,
    ):
        self.dataset, self.store, self.loss, self.one_pass, self.config = dataset, store, loss, one_pass, config
        self.process, self.processes = process, processes
        examples = dataset.examples("train", 1)
        self.users, self.positions, self.targets = examples.users, examples.positions, examples.targets
        self.width = int(np.diff(dataset.offsets).max()) + 1
        self.keys = self.users * self.width + self.positions  # sorted: user by user, in time order
        ranked = prior or store
        if loss.rank and ranked.candidates < config.candidates:
            raise UserError(
                f"{ranked.artifact.folder} has {ranked.candidates} candidates an example, --candidates asks for "
                f"{config.candidates}; export with --keep {config.candidates}."
            )
        if store is not None and store.split != "train":
            raise UserError(
                f"{store.artifact.folder} labels the {store.split} split, which no student may see; export with "
                "--split train."
            )
        if loss.generative == "distill" and store.scope == "all" and config.scope == "level":
            raise UserError(
                f"{store.artifact.folder} has distributions over all levels' codewords, --scope level asks for each "
                "level's own; train with --scope all, or export with --scope level."
            )
        self.total = len(self.users) if store is None else store.rows
        if not self.total:
            where = "The data set has" if store is None else f"{store.artifact.folder} labels"
            raise UserError(f"{where} no training example.")
        self.ranked = None if prior is None else self._ranked(prior)

    def _ranked(self, prior: LabelStore) -> tuple[np.ndarray, np.ndarray]:
        """The prior's candidates of all training examples that it has [examples, k], and the rank that it gave each
        reference [examples]; they are small, so in memory."""
        columns = prior.read("user", "position", "target", "candidates", "candidate_scores")
        keys = columns["user"].astype(np.int64) * self.width + columns["position"]
        found = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known = (self.keys[found] == keys) & (self.targets[found] == columns["target"])
        ranked = np.full((len(self.keys), self.config.candidates), PAD, np.int32)
        ranked[found[known]] = columns["candidates"][known, : self.config.candidates]
        ranks = np.zeros(len(self.keys), np.int64)
        ranks[found[known]] = reference_ranks(columns["candidate_scores"][known], self.config.candidates)
        wanted = self.store.read("user", "position")
        wanted = wanted["user"].astype(np.int64) * self.width + wanted["position"]
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)  # `_blocks` refuses strangers
        lacking = ranked[places, 0] == PAD  # the reference comes first
        if lacking.any():
            user, position = divmod(int(wanted[lacking.argmax()]), self.width)
            raise UserError(
                f"{prior.artifact.folder} lacks {lacking.sum():,} of the {len(wanted):,} examples of "
                f"{self.store.artifact.folder}, first the item at {position} of user {user}; export it again, of the "
                "training split and without --limit or --users."
            )
        return ranked, ranks

    def _candidates(self, block: LabelBlock, rows: np.ndarray) -> np.ndarray:
        """What is ranked, best first [n, k]."""
        if self.ranked is None:
            return block.candidates(rows)[:, : self.config.candidates].astype(np.int64)
        return self.ranked[0][self._places(block, rows)].astype(np.int64)

    def _ranks(self, block: LabelBlock, rows: np.ndarray) -> np.ndarray:
        """The reference's rank by whoever made the list that is ranked [n]."""
        if self.ranked is None:
            return reference_ranks(block.scores(rows), self.config.candidates)
        return self.ranked[1][self._places(block, rows)]

    def _places(self, block: LabelBlock, rows: np.ndarray) -> np.ndarray:
        """Labelled examples among the data set's [n]."""
        return np.searchsorted(self.keys, block.users[rows].astype(np.int64) * self.width + block.positions[rows])

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """This process's parts of an epoch's global batches, without the first `skip` of these.

        Every example comes once, whatever the number of processes; a part may be a row of weight 0, so that no process
        waits for another that has nothing left.
        """
        size, number = self.config.batch_size * self.processes * self.config.accumulation, 0
        for place, (block, users, positions, targets, labels) in enumerate(self._blocks(epoch)):
            longest, strided = self.config.max_history, self.config.long_histories == "windows"
            layout = lay_out(users, positions, self.dataset.offsets, longest, self.one_pass, strided)
            key = [self.config.seed, epoch] + ([place] if self.store is not None else [])
            for group in buckets(layout.lengths, size, np.random.default_rng(key)):
                number += 1
                if number > skip:
                    rng = np.random.default_rng([self.config.seed, epoch, number, 1])
                    yield from self._parts(block, layout, targets, labels, group, rng)

    def _blocks(self, epoch: int) -> Iterator[tuple[LabelBlock | None, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """(labels, users, positions, targets, rows of the labels) of the examples that lie in memory together."""
        if self.store is None:
            yield None, self.users, self.positions, self.targets, np.arange(self.total)
            return
        rng = np.random.default_rng([self.config.seed, epoch])
        for block in self.store.blocks(self.config.buffer_rows, rng):
            keys = block.users.astype(np.int64) * self.width + block.positions
            order = np.argsort(keys, kind="stable")
            found = np.minimum(np.searchsorted(self.keys, keys[order]), len(self.keys) - 1)
            known = self.keys[found] == keys[order]
            if not known.all() or (self.targets[found] != block.targets[order]).any():
                raise UserError(
                    f"{self.store.artifact.folder} labels targets that are no training examples of this data set: "
                    "another data set, or another split of it."
                )
            yield block, self.users[found], self.positions[found], self.targets[found], order

    def _parts(
        self,
        block: LabelBlock | None,
        layout: Layout,
        targets: np.ndarray,
        labels: np.ndarray,
        group: np.ndarray,
        rng: np.random.Generator,
    ) -> Iterator[Batch]:
        config = self.config
        counts = np.diff(layout.first)[group]
        inner = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        examples = np.repeat(layout.first[group], counts) + inner
        rows, places = np.repeat(np.arange(len(group)), counts), layout.places[examples]
        column = np.arange(layout.lengths[group].max())
        inside = column < layout.lengths[group][:, None]
        index = np.minimum(layout.starts[group][:, None] + column, len(self.dataset.values) - 1)
        sequences, targets = np.where(inside, self.dataset.values[index], PAD), targets[examples]
        hard = np.zeros(len(examples), dtype=bool)
        if config.drop_items or config.reverse or config.shuffle:
            # in one pass targets turn with their sequence, and a ranking loss alone has nothing to say of them
            reverse = config.reverse if self.loss.generative or not self.one_pass else 0.0
            sequences, turned = permute(sequences, reverse, config.shuffle, rng)
            if self.one_pass:
                hard = turned[rows] & (self.store is not None)
                targets = sequences[rows, places]
                sequences, places, kept = drop_with_targets(sequences, rows, places, config.drop_items, rng)
                rows, places, targets = rows[kept], places[kept], targets[kept]
                examples, hard = examples[kept], hard[kept]
            else:
                sequences = drop(sequences, config.drop_items, rng)
                places = (sequences != PAD).sum(1)
        labels = labels[examples]

        weights = np.ones(len(examples))
        ranked = np.full(len(examples), self.loss.rank)
        if block is not None and config.confidence:
            ranks = reference_ranks(block.scores(labels), config.candidates)
            weights = np.where(hard, 1.0, losses.confidence(torch.from_numpy(ranks), config.confidence).numpy())
        if block is not None and self.loss.rank and config.rank_within:
            ranked &= self._ranks(block, labels) <= config.rank_within
        rank_weights = np.where(ranked & ~hard, weights, 0)
        rank_total = float(rank_weights.sum())
        if self.one_pass and config.rank_positions == "one":
            rank_weights = sample(rows, rank_weights, len(group), rng)
        draw = rng.random(len(examples))
        total = float(weights.sum())

        parts = share(np.arange(len(group)), self.process, self.processes, config.accumulation)
        for step, own in enumerate(parts):
            factor = 1.0 if len(own) else 0.0  # nothing left here: some row, for nothing
            own = own if len(own) else np.arange(1)
            number = np.full(len(group), PAD)
            number[own] = np.arange(len(own))
            mine = np.flatnonzero(number[rows] >= 0)
            row, part = number[rows[mine]], sequences[own]
            part = part[:, : max(1, (part != PAD).sum(1).max())]
            chosen = rank_weights[mine] * factor
            batch = {
                "sequences": part,
                "rows": row,
                "places": places[mine],
                "targets": targets[mine],
                "hard": hard[mine],
                "weights": (weights[mine] * factor).astype(np.float32),
                "rank_weights": chosen.astype(np.float32),
                "groups": grouped(row, chosen, len(own)) if self.one_pass and self.loss.rank and len(mine) else None,
            }
            if block is not None:
                wanted = labels[mine]
                if self.loss.rank:
                    batch["candidates"] = self._candidates(block, wanted)
                if self.loss.generative == "distill":
                    batch["log_probs"] = block.log_probs(wanted)
                if self.loss.target != "ref":
                    lists = block.candidates(wanted).astype(np.int64)
                    batch["targets"] = of_the_list(lists, block.scores(wanted), self.loss.target, draw[mine])
            tensors = {name: None if value is None else torch.from_numpy(value) for name, value in batch.items()}
            numbers = {"total": total, "rank_total": rank_total, "count": len(examples)}
            yield Batch(**tensors, **numbers, last=step == len(parts) - 1, one_pass=self.one_pass)


def reference_ranks(scores: np.ndarray, k: int) -> np.ndarray:
    """`losses.reference_rank` among the first k candidates, the reference first [n, any] → [n]."""
    return losses.reference_rank(torch.from_numpy(scores[:, :k])).numpy()


def of_the_list(lists: np.ndarray, scores: np.ndarray, which: str, draw: np.ndarray) -> np.ndarray:
    """An item of each teacher's list in place of the reference (alignment study, 4.6) [n].

    Args:
        lists: item numbers, PAD for none [n, k].
        scores: the teacher's, −∞ for none [n, k].
        which: "top", the teacher's first, or "random", any.
        draw: in [0, 1) [n].
    """
    place = scores.argmax(1) if which == "top" else np.floor(draw * (lists != PAD).sum(1)).astype(np.int64)
    return lists[np.arange(len(lists)), place]


def permute(
    sequences: np.ndarray, reverse: float, distance: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each row backwards with probability `reverse`, then its items moved by at most `distance` places.

    Returns:
        The rows, and which were turned around [rows].
    """
    rows, width = sequences.shape
    here, column = sequences != PAD, np.arange(width, dtype=float)
    turned = rng.random(rows) < reverse
    key = np.where(turned[:, None], -column, column) + (distance + 1) * rng.random((rows, width))
    order = np.argsort(np.where(here, key, np.inf), axis=1, kind="stable")
    return np.take_along_axis(sequences, order, axis=1), turned


def drop(sequences: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Each item gone with this probability, but never all of a row; padding stays on the right."""
    here = sequences != PAD
    keep = here & (rng.random(sequences.shape) >= probability)
    keep[np.arange(len(keep)), here.sum(1) - 1] |= ~keep.any(1)  # the last one, where none is left
    return _close_up(sequences, keep)


def drop_with_targets(
    sequences: np.ndarray, rows: np.ndarray, places: np.ndarray, probability: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`drop` for windows: a target that is dropped, or left without history, is no example.

    Returns:
        The sequences, the targets' new places [n], and which examples remain [n].
    """
    keep = (sequences != PAD) & (rng.random(sequences.shape) >= probability)
    before = np.cumsum(keep, axis=1) - keep
    places, kept = before[rows, places], keep[rows, places]
    return _close_up(sequences, keep), places, kept & (places > 0)


def _close_up(sequences: np.ndarray, keep: np.ndarray) -> np.ndarray:
    order = np.argsort(~keep, axis=1, kind="stable")
    return np.take_along_axis(np.where(keep, sequences, PAD), order, axis=1)


def sample(rows: np.ndarray, weights: np.ndarray, n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """One example a row, drawn by weight, stands for all of its row: it takes the sum of their weights.

    The expectation of the weighted sum of losses is that over all examples.

    Args:
        rows: of the examples, ascending [n].
        weights: theirs, 0 for those not to be drawn [n].
        n_rows: rows there are.
        rng: draws.
    """
    sums = np.bincount(rows, weights, n_rows)
    up_to = np.cumsum(weights) - (np.cumsum(sums) - sums)[rows]  # within the row
    hits = np.flatnonzero((weights > 0) & (up_to > (rng.random(n_rows) * sums)[rows]))
    drawn, first = np.unique(rows[hits], return_index=True)
    result = np.zeros(len(weights))
    result[hits[first]] = sums[drawn]
    return result


def grouped(rows: np.ndarray, weights: np.ndarray, n_rows: int) -> np.ndarray:
    """The examples of each row that have a weight, padded with -1 [n_rows, groups].

    One group at least: where weights are cut to pieces, all processes must call the same layers.
    """
    examples = np.flatnonzero(weights)
    counts = np.bincount(rows[examples], minlength=n_rows)
    column = np.arange(len(examples)) - (np.cumsum(counts) - counts)[rows[examples]]
    result = np.full((n_rows, max(counts.max(), 1)), PAD)
    result[rows[examples], column] = examples
    return result


def open_prior(folder: Path, teacher: str) -> LabelStore:
    """Labels whose candidates are ranked in place of the teacher's.

    Args:
        folder: a soft_labels artifact.
        teacher: who should have made them: distance, statistics or mixture.

    Raises:
        UserError: somebody else did, or the labels cannot be read.
    """
    store = LabelStore.open(folder)
    if store.teacher != teacher:
        raise UserError(
            f"--prior {teacher}, but {folder} holds the labels of {store.teacher or 'a language model'}; "
            "name another --prior_labels."
        )
    return store


class Prefetched:
    """Batches made by a thread of their own while the model trains.

    Args:
        batches: an iterator that draws from no global generator.
        depth: batches that may lie ready.

    Attributes:
        waited: seconds that the training waited for batches.
    """

    def __init__(self, batches: Iterator[Any], depth: int = 4):
        self.waited = 0.0
        self._ready: queue.Queue = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(batches,), daemon=True)
        self._thread.start()

    def _fill(self, batches: Iterator[Any]) -> None:
        last: tuple[str, Any] = ("end", None)
        try:
            for batch in batches:
                if not self._put(("batch", batch)):
                    return
        except BaseException as error:  # a mistake in the labels is the training's to report
            last = ("error", error)
        self._put(last)

    def _put(self, thing: tuple[str, Any]) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(thing, timeout=0.1)
                return True
        return False

    def __iter__(self) -> Iterator[Any]:
        while True:
            started = time.perf_counter()
            kind, thing = self._ready.get()
            self.waited += time.perf_counter() - started
            if kind == "batch":
                yield thing
            elif kind == "error":
                raise thing
            else:
                return

    def __enter__(self) -> Prefetched:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
