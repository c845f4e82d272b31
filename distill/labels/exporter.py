"""The export of soft labels: shards of whole users, made by one or several processes, then report and index.

The result is the same to the byte however often the work is interrupted and however it is divided.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.dataset import Examples
from distill.data.examples import TargetRanges
from distill.labels.config import ShardSettings, parse_shard
from distill.labels.encodings import ENCODINGS
from distill.labels.hub import push
from distill.labels.labeller import LAST_LAYER, Labeller, LabelRequest, Labels, Progress, no_progress
from distill.labels.quality import mean_quality, shard_quality
from distill.labels.reuse import EarlierLabels
from distill.labels.schema import Columns, recorded_shards, write_index
from distill.labels.selection import sample_of_users, shard_bounds
from distill.labels.shard_queue import Record, ShardQueue
from distill.labels.writer import (
    concatenate_columns,
    encode_columns,
    is_intact,
    shard_columns,
    write_content,
)
from distill.runtime.artifacts import ArtifactJob, write_json
from distill.runtime.disk import describe_full_disk, full_disk_reason
from distill.runtime.errors import UserError
from distill.runtime.logs import log, progress_bar
from distill.semantic_ids.ids import SemanticIDs

DRY_RUN_EXAMPLES = 200
WARM_UP_EXAMPLES = 8  # labelled before the time of a dry run is taken


@dataclass(frozen=True)
class Exporter:
    """Labels examples and writes them shard by shard.

    Attributes:
        labeller: the teacher.
        targets: what is labelled; the examples of a shard are made when it is its turn.
        ids: the semantic IDs.
        request: beam width, candidates, scope.
        settings: encoding, size of the shards, and this process's part of them.
        split: the targets' split.
        sources: facts for the index about the teachers and the inputs.
        earlier: labels of an earlier data set, whose rows are copied where they still hold; None: all are made.
    """

    labeller: Labeller
    targets: TargetRanges
    ids: SemanticIDs
    request: LabelRequest
    settings: ShardSettings
    split: str
    sources: dict[str, Any]
    earlier: EarlierLabels | None = field(default=None, kw_only=True)

    @cached_property
    def bounds(self) -> np.ndarray:
        """First example of each shard, and the end [shards + 1]."""
        return shard_bounds(self.targets.ends, self.settings.shard_rows)

    def export(self, job: ArtifactJob) -> bool:
        """Make this process's shards and, if they are the last ones, finish the artifact.

        Returns:
            False if other processes have shards to finish.

        Raises:
            UserError: the disk is full, or another process works on a set that is to be overwritten.
        """
        number, processes = parse_shard(self.settings.shard)
        queue = ShardQueue(job, len(self.bounds) - 1, recorded_shards, is_intact)
        with report_interruption(queue):
            if not join(queue, job.overwrite, number, processes):
                return True
            if not self.make_shards(queue, range(number, queue.shard_count, processes)):
                return True
            if queue.finish(lambda records: self.complete(job, records)):
                return True
        missing = queue.shard_count - queue.count_finished()
        log.info(
            f"{missing} of {queue.shard_count} shards belong to other processes; the last one to finish completes "
            f"{job.output}"
        )
        return False

    def make_shards(self, queue: ShardQueue, numbers: range) -> bool:
        """Label and write the unfinished shards among `numbers`; False if the set was finished meanwhile."""
        for number in queue.discard_damaged():
            log.info(f"shard {number} was cut or altered: made again")
        rows = np.diff(self.bounds)
        finished = sum(int(rows[number]) for number in numbers if queue.record(number) is not None)
        with LabelProgress(int(rows[numbers].sum()), finished, self.labeller) as progress:
            return self.label_shards(queue, numbers, progress.update)

    def label_shards(self, queue: ShardQueue, numbers: range, progress: Progress) -> bool:
        """Label and write the unfinished shards among `numbers` in this process, as `make_shards`."""

        def make(number: int) -> Record:
            return self.write(queue.job.partial / "data", number, *self.label_shard(number, progress))

        return queue.make_shards(numbers, make)

    def label_shard(self, number: int, progress: Progress) -> tuple[memoryview, dict[str, float]]:
        """Label one shard; returns the content of its file, and its quality, which says how many rows were copied."""
        examples = self.targets.take(slice(self.bounds[number], self.bounds[number + 1]))
        if self.earlier is not None:
            return self._complete_shard(self.earlier, examples, progress)
        labels = self.labeller.label(examples, self.request, progress)
        check_numbers(examples, labels)
        return encode_columns(self._columns(examples, labels)), shard_quality(examples, labels, self.ids, self.request)

    def _complete_shard(
        self, earlier: EarlierLabels, examples: Examples, progress: Progress
    ) -> tuple[memoryview, dict[str, float]]:
        """Copy the earlier labels that still hold, and label the rest, whose quality it is; as `label_shard`."""
        rows = earlier.find(examples)
        copied, missing = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
        parts, quality = [], {"targets": 0.0}
        if len(copied):
            parts.append(earlier.read(rows[copied], examples.take(copied), self.ids.codes))
            progress(len(copied))
        if len(missing):
            changed = examples.take(missing)
            labels = self.labeller.label(changed, self.request, progress)
            check_numbers(changed, labels)
            parts.append(self._columns(changed, labels))
            quality = shard_quality(changed, labels, self.ids, self.request)
        columns = concatenate_columns(parts, np.argsort(np.concatenate([copied, missing])))
        return encode_columns(columns), quality | {"copied": float(len(copied))}

    def write(self, data: Path, number: int, content: bytes | memoryview, quality: dict[str, float]) -> Record:
        """Write a shard's file; returns its record in the index, with its quality."""
        data.mkdir(exist_ok=True)
        rows = int(self.bounds[number + 1] - self.bounds[number])
        return write_content(data / f"{number:05d}.parquet", content, rows) | {"quality": quality}

    def complete(self, job: ArtifactJob, records: list[Record]) -> None:
        """Write the report, then the index: with it the set is whole."""
        quality = mean_quality([record["quality"] for record in records])
        size = sum((job.partial / "data" / record["file"]).stat().st_size for record in records)
        quality["bytes_per_target"] = size / len(self.targets)
        labeller = self.labeller.facts()
        facts = {
            "split": self.split,
            "scope": self.request.scope,
            "encoding": self.settings.encoding,
            "levels": self.ids.levels,
            "codebook_size": self.ids.codebook_size,
            "keep": self.request.keep,
            **self.sources,
            "labeller": labeller,
        }
        job.facts = {"targets": len(self.targets), "encoding": self.settings.encoding, "labeller": labeller}
        if self.earlier is not None:
            copied = int(quality["copied"])
            source = self.earlier.store.artifact
            facts["reused"] = {"soft_labels": source.fingerprint, "dataset": source.inputs["dataset"], "copied": copied}
            job.facts |= {"copied": copied, "computed": len(self.targets) - copied}
            log.info(f"soft labels: {copied:,} copied from {source.folder}, {job.facts['computed']:,} made")
        if self.request.features:
            facts["features"] = self.request.features
        if self.request.feature_layers != LAST_LAYER:
            facts["feature_layers"] = list(self.request.feature_layers)
        write_json(job.partial / "report.json", quality)
        write_index(job.partial, records, **facts)
        log.info("soft labels: " + ", ".join(f"{key} {value:.4g}" for key, value in quality.items()))

    def estimate(self) -> str:
        """Label a sample of users' examples and describe what all of them would take, as a table of text."""
        sample = sample_of_users(self.targets, DRY_RUN_EXAMPLES)
        self.labeller.label(sample.take(slice(0, WARM_UP_EXAMPLES)), self.request, no_progress)
        started = time.time()
        with progress_bar(total=len(sample), desc="dry run", unit="target") as progress:
            labels = self.labeller.label(sample, self.request, progress.update)
        seconds = (time.time() - started) / len(sample)
        size = len(encode_columns(self._columns(sample, labels))) / len(sample)
        quality = mean_quality([shard_quality(sample, labels, self.ids, self.request)])
        total, users = len(self.targets), len(self.targets.users)
        changed = total if self.earlier is None else self._count_changed(self.earlier)
        processes = parse_shard(self.settings.shard)[1]
        copied = f"; {total - changed:,} are copied from earlier labels" if self.earlier else ""
        rows = {
            "targets": f"{total:,} of {users:,} users, split {self.split}{copied}",
            "shards": f"{len(self.bounds) - 1:,}",
            "bytes a target": f"{size:,.0f}, from {len(sample)} examples, encoding {self.settings.encoding}",
            "size": f"{size * total / 2**20:,.1f} MiB",
            "targets a second": f"{1 / seconds:,.1f}",
            "time": f"{seconds * changed / processes / 3600:,.2f} h by {processes} such process(es)",
        }
        for key in ("reference_in_beams", *(f"kl_{encoding}" for encoding in ENCODINGS)):
            rows[key.replace("_", " ")] = f"{quality[key]:.4g}"
        return "\n".join(f"{name:20} {value}" for name, value in rows.items())

    def _count_changed(self, earlier: EarlierLabels) -> int:
        """Count the targets whose earlier labels do not hold."""
        shards = (self.targets.take(slice(*bounds)) for bounds in pairwise(self.bounds.tolist()))
        return sum(int((earlier.find(examples) < 0).sum()) for examples in shards)

    def _columns(self, examples: Examples, labels: Labels) -> Columns:
        """Encode labels as the columns of a shard."""
        codes = self.ids.codes[examples.targets]
        values = labels.candidates, labels.scores, labels.log_probs
        return shard_columns(examples, codes, *values, self.settings.encoding, labels.states)


def check_numbers(examples: Examples, labels: Labels) -> None:
    """Refuse labels that hold NaN or +∞, as those of a damaged teacher do.

    Raises:
        UserError: names the first example; shards before it are kept.
    """
    bad = ~(labels.scores < np.inf).all(1) | ~(labels.log_probs < np.inf).all((1, 2))
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(
            f"The teacher's labels of user {examples.users[row]}, position {examples.positions[row]}, hold NaN or "
            "infinity: its weights may be damaged, or their type too narrow (--dtype float32). Nothing of this shard "
            "was written."
        )


def join(queue: ShardQueue, overwrite: bool, number: int, processes: int) -> bool:
    """Join the queue; with `overwrite` the first process deletes what exists before the others join.

    Returns:
        False if another process has finished the artifact in the meantime.
    """
    if not overwrite or processes == 1:
        return queue.join(fresh=overwrite)
    # over the launcher's store alone: vLLM may have a process group of its own
    from torch.distributed import rendezvous

    store, _, _ = next(rendezvous("env://"))
    if number == 0:
        queue.join(fresh=True)
        store.set("first", "done")
        return True
    store.wait(["first"])
    return queue.join()


def is_complete(job: ArtifactJob) -> bool:
    """Tell whether the set is finished and no shard was cut or altered since.

    Raises:
        SystemExit: with --check, if it is not.
    """
    if not job.is_finished():
        return False
    damaged = [shard["file"] for shard in recorded_shards(job.output) if not is_intact(job.output, shard)]
    if damaged and job.check_only:
        sys.exit(1)
    if damaged:
        log.info(f"{job.output}: cut or altered, so made again: {', '.join(damaged)}")
    return not damaged


def publish(output: Path, name: str | None) -> None:
    """Copy the finished set to the hub or a folder, from the first process; None: nowhere."""
    if name and parse_shard(None)[0] == 0:
        push(output, name)
        log.info(f"soft labels: pushed to {name}")


class LabelProgress(progress_bar):
    """A bar with targets done, targets a second, the engine's tokens a second and hits of its prefix cache."""

    def __init__(self, total: int, finished: int, labeller: Labeller):
        self.counters, self.started = getattr(labeller, "counters", dict), time.time()
        super().__init__(total=total, initial=finished, desc="soft labels", unit="target")

    def update(self, n: float | None = 1) -> bool | None:
        """Count n more targets."""
        counted: dict[str, int] = self.counters()
        shown: dict[str, str] = {}
        if "tokens" in counted:
            shown["tokens_s"] = f"{counted['tokens'] / (time.time() - self.started):,.0f}"
        if counted.get("cached_tokens"):
            shown["prefix_hits"] = f"{counted['cached_tokens'] / counted['tokens']:.0%}"
        self.set_postfix(shown, refresh=False)
        return super().update(n)


@contextlib.contextmanager
def report_interruption(queue: ShardQueue) -> Iterator[None]:
    """Log how much is finished and kept when an error ends the block; a full disk becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        finished = queue.count_finished() or len(recorded_shards(queue.job.partial))
        kept = f"{finished} of {queue.shard_count} shards are finished and kept; the same command goes on from there"
        reason = full_disk_reason(error)
        if reason is not None:
            message = describe_full_disk(reason, queue.job.output, f"{kept} when there is room.")
            raise UserError(message, on_all_processes=False) from None
        log.info(f"{type(error).__name__}: the export was interrupted. {kept}.")
        raise
