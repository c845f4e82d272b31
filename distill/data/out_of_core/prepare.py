"""Prepare a data set that does not fit into memory: the same files as `distill.data.prepare` makes."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distill.data import dataset, sources
from distill.data.config import EngineSettings, PrepareSettings
from distill.data.dataset import as_lists, check_unique, sequence_table, statistics_of, write_items
from distill.data.mapped_sequences import SequenceWriter
from distill.data.out_of_core.chunks import Chunks
from distill.data.out_of_core.database import Database
from distill.data.out_of_core.disk_chunks import DiskChunks
from distill.data.out_of_core.filters import LeftOut, find_short, k_core, refine, renumbered, sizes, without_short
from distill.data.out_of_core.ray_chunks import RayChunks
from distill.data.out_of_core.splitting import moments_of_cut, remove_withheld
from distill.data.prepare import check_moments, reader_options
from distill.data.sources import Options, Source
from distill.data.sources.base import check_texts, without_text
from distill.data.sources.refine import clean_texts, no_user, short_user
from distill.data.splits import MIN_LENGTH, MIN_LENGTH_CUT, cut_positions
from distill.data.withholding import draw_items
from distill.runtime import ray_cluster, ray_tasks

SCRATCH = "interactions"  # folder of the intermediate files


@dataclass(frozen=True)
class PreparedChunks:
    """A checked data set in chunks, ready to be written; the counterpart of `PreparedData`.

    Attributes:
        chunks: items and sequences.
        moments: of a split by time, where validation and test begin in seconds; None: leave-one-out.
        withheld: items withheld from training [n_items] (bool), or None.
        users, interactions: how many there are.
        short_users: users that were left out because they have too few items for the split.
    """

    chunks: Chunks
    moments: tuple[int, int] | None
    withheld: np.ndarray | None
    users: int
    interactions: int
    short_users: int

    def facts(self) -> dict[str, float]:
        """Compute the columns of the paper's Table 3, and the number of withheld items if there are some."""
        numbers = statistics_of(self.chunks.items.num_rows, self.users, self.interactions)
        return numbers if self.withheld is None else numbers | {"withheld_items": int(self.withheld.sum())}

    def write(self, folder: Path) -> None:
        """Write all files of the data set into an existing folder."""
        ids = pa.chunked_array([self.chunks.items["item_id"]]).cast(pa.string()).combine_chunks()
        write_items(folder, ids, self.chunks.items, self.withheld)
        groups = in_pieces(map(self._columns, self.chunks.with_user_ids()), dataset.ROW_GROUP)
        first = next(groups)
        with (
            pq.ParquetWriter(folder / "sequences.parquet", first.schema) as writer,
            SequenceWriter(folder, self.users, self.interactions) as mapped,
        ):
            for table in itertools.chain([first], groups):
                writer.write_table(table, row_group_size=dataset.ROW_GROUP)
                lists = pa.concat_arrays(table["items"].chunks)
                mapped.append(lists.flatten().to_numpy(), lists.value_lengths().to_numpy())

    def _columns(self, source: Source) -> pa.Table:
        """Make rows of sequences.parquet of a chunk with the users' ids."""
        values = as_lists(source.values, source.offsets, pa.int32())
        stamps = pa.nulls(len(source.user_ids), pa.list_(pa.int64()))
        if source.times is not None:
            stamps = as_lists(source.times, source.offsets, pa.int64())
        ends = None if self.moments is None else cut_positions(source.times, source.offsets, self.moments)
        return sequence_table(source.user_ids, values, stamps, ends)


def in_pieces(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Cut tables anew, to tables of so many rows, in one piece of memory each; the last may have fewer."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows).combine_chunks()
            waiting = [joined.slice(rows)]
    rest = pa.concat_tables(waiting)
    if len(rest):
        yield rest.combine_chunks()


def prepare_in_chunks(
    settings: PrepareSettings, engine: EngineSettings, folder: Path
) -> contextlib.AbstractContextManager[PreparedChunks]:
    """Read, filter, check and split by the engine duckdb or ray; `folder` is the working folder."""
    if engine.engine == "ray":
        return prepare_on_ray(settings, engine.ray_address, engine.ray_timeout)
    return prepare_out_of_core(settings, engine.memory_limit, folder)


@contextlib.contextmanager
def prepare_out_of_core(settings: PrepareSettings, memory_limit: str, folder: Path) -> Iterator[PreparedChunks]:
    """Read, filter, check and split as `distill.data.prepare.prepare`, in bounded memory.

    Args:
        settings: of a format whose reader has `read_blocks`.
        memory_limit: such as 4GB.
        folder: the working folder; intermediate files are below it until the block ends.

    Raises:
        UserError: bad input or settings; the memory limit is too small.
    """
    scratch = folder / SCRATCH
    scratch.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch)
        database = Database(scratch, memory_limit)
        stack.callback(database.close)
        yield _prepare(settings, DiskChunks(scratch, database))


@contextlib.contextmanager
def prepare_on_ray(settings: PrepareSettings, address: str | None, timeout: float) -> Iterator[PreparedChunks]:
    """Read, filter, check and split as `distill.data.prepare.prepare`, on a Ray cluster.

    Args:
        settings: of a format whose reader has `read_blocks`.
        address: of the cluster, as `ray_cluster.connect` takes it.
        timeout: seconds without a finished task after which the work ends.

    Raises:
        UserError: bad input or settings; no Ray, no cluster, or one that cannot do the work.
    """
    with ray_cluster.connect(address), ray_tasks.cluster_errors():
        yield _prepare(settings, RayChunks(timeout))


def _prepare(settings: PrepareSettings, chunks: Chunks) -> PreparedChunks:
    moments, options = check_moments(settings), reader_options(settings)
    loaded = chunks.load(sources.reader(settings.format).read_blocks(settings.input, options), options)
    left_out = LeftOut(chunks.origin)
    if options.min_rating is not None:
        left_out.add(f"rated below {options.min_rating:g}", loaded.n_low, loaded.n_rows)
    _fill(chunks, options, left_out)
    left_out.report()
    if options.user_core > 0 or options.item_core > 0:
        _reduce_to_core(chunks, options, left_out)
    check_unique(chunks.items["item_id"], "item", chunks.origin)
    by_time = settings.split == "global_cut"
    min_length, split = (MIN_LENGTH_CUT, "global_cut") if by_time else (MIN_LENGTH, "leave-one-out")
    short_users = _leave_out_short_users(chunks, settings.short_users, min_length, split)
    cuts = moments_of_cut(chunks, *moments) if by_time else None
    withheld = None
    if settings.withhold:
        withheld = draw_items(chunks.items.num_rows, settings.withhold, settings.seed)
        remove_withheld(chunks, cuts, withheld)
    users, interactions = np.sum(list(chunks.map(sizes)), axis=0).tolist()
    return PreparedChunks(chunks, cuts, withheld, users, interactions, short_users)


def _fill(chunks: Chunks, options: Options, left_out: LeftOut) -> None:
    """Sort the rows and cut them into chunks, without items that have no text and without repetitions."""
    items = chunks.items
    if options.clean_html:
        items = clean_texts(items)
        check_texts(items, lambda item: chunks.origin, options.empty_text)
    blank = without_text(items) & (options.empty_text == "drop")
    for counts in chunks.fill(partial(refine, blank=blank, duplicates=options.duplicates)):
        left_out.add_all(counts)
    chunks.items = items.take(pa.array(np.flatnonzero(~blank))) if blank.any() else items


def _reduce_to_core(chunks: Chunks, options: Options, left_out: LeftOut) -> None:
    """Leave out rare users and items, and give the remaining items new numbers."""
    bought = k_core(chunks, options, left_out) > 0
    left_out.report()
    if options.item_core > 0 and not bought.all():
        kept = np.flatnonzero(bought)
        for _ in chunks.update(partial(renumbered, kept=kept)):
            pass
        chunks.items = chunks.items.take(pa.array(kept))


def _leave_out_short_users(chunks: Chunks, short_users: Literal["error", "drop"], min_length: int, split: str) -> int:
    """Refuse or drop users with fewer items than the split needs; returns how many were dropped.

    Raises:
        UserError: there are such users and short_users is "error", or no user is left.
    """
    summaries = list(chunks.map(partial(find_short, min_length=min_length)))
    n_short = sum(short.count for short in summaries)
    first = next((short.first for short in summaries if short.first), None)
    if first is not None and short_users == "error":
        raise short_user(chunks.origin, chunks.user_id(first[0]), first[1], min_length, split, n_short)
    if n_short == sum(short.users for short in summaries):
        raise no_user(chunks.origin, min_length)
    if n_short:
        for _ in chunks.update(partial(without_short, min_length=min_length)):
            pass
    return n_short
