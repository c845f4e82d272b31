"""Chunks on a Ray cluster: read by its workers, exchanged and sorted by Ray Data.

The rows pass over the network twice. First they are sorted by a hash of the user's id, which brings all rows of a user
to one place: there a user becomes one row (the number of the user's first row, the id, lists of items and times). Then
the users are sorted by their first rows. A user is never divided, because the second sort moves whole users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from distill.data.dataset import as_lists
from distill.data.out_of_core.catalogue import number_items
from distill.data.out_of_core.chunks import Change, Chunks, Loaded, Summary, unnamed_items
from distill.data.sources import Options, Source
from distill.data.sources.blocks import BadRows, Block, InteractionBlocks, Part
from distill.data.sources.numbering import MERGE_ROWS
from distill.runtime.ray_tasks import call_on_cluster, fetch

CHUNK_ROWS = 1 << 20  # interactions of a chunk, on average
MANY_PIECES = 100_000  # of a sort: of every table, one for every range of keys; Ray counts 3 kB of the driver for each
BINS = 1 << 14  # of first rows, to find users that divide the interactions evenly


class RayChunks(Chunks):
    """Chunks as objects of a Ray cluster; their users have ids.

    Args:
        timeout: seconds without a finished task after which the work ends.
    """

    def __init__(self, timeout: float):
        self.timeout = timeout
        self.n_rows = 0
        self.rows: list[Any] = []  # references of tables, as `rows_of_block` makes them
        self.chunks: list[Any] = []  # references of sources

    def load(self, blocks: InteractionBlocks, options: Options) -> Loaded:
        """See `Chunks`. Parts of a file are read by workers; a file that has none is read here."""
        self.origin, self.has_times = str(blocks.path), blocks.columns.time is not None
        function: Callable[..., tuple[pa.Table, Facts]]
        if blocks.parts:
            head = next(blocks.tables).take(pa.array([0]))
            function = partial(read_part, blocks.without_rows(head), options.min_rating)
            calls: Iterator[tuple[Any, ...]] = ((part,) for part in blocks.parts)
        else:
            function, calls = partial(rows_of_block, min_rating=options.min_rating), ((block,) for block in blocks)
        appearances = Appearances()
        n_low = 0
        for reference, facts in self._call(function, calls):
            if facts.n_rows:
                self.rows.append(reference)
            self.n_rows, n_low = self.n_rows + facts.n_rows, n_low + facts.n_low
            appearances.add(facts.appearances)
            blocks.bad_times.add_later(facts.bad_times)
            blocks.bad_ratings.add_later(facts.bad_ratings)
        self.items, self.named, self.numbers = number_items(blocks, appearances.table())
        blocks.check_numbers()
        return Loaded(self.items, self.n_rows, n_low)

    def fill(self, change: Change[Summary]) -> Iterator[Summary]:
        """See `Chunks`."""
        count = -(-self.n_rows // CHUNK_ROWS)
        hashes = [-(2**63) + 2**64 * place // count for place in range(1, count)]
        together = self._sorted_by(self.rows, "hash", hashes)
        self.rows = []
        group = partial(
            group_users, named=self.named, numbers=self.numbers, has_times=self.has_times, n_rows=self.n_rows
        )
        users, histogram = [], np.zeros(BINS, dtype=np.int64)
        for reference, counts in self._call(group, together):
            histogram += counts
            if counts.any():
                users.append(reference)
        del together  # their objects
        in_order = self._sorted_by(users, "first_row", first_rows_between(histogram, self.n_rows, count))
        del users
        make = partial(
            make_chunk, change=change, n_items=self.items.num_rows, origin=self.origin, has_times=self.has_times
        )
        for reference, summary in self._call(make, in_order):
            self.chunks.append(reference)
            yield summary

    def map(self, function: Callable[[Source], Summary]) -> Iterator[Summary]:
        """See `Chunks`."""
        for _, summary in self._call(partial(_look, function), ((chunk,) for chunk in self.chunks)):
            yield summary

    def update(self, change: Change[Summary]) -> Iterator[Summary]:
        """See `Chunks`; chunks that `change` returns as they are stay as they are."""
        results = self._call(partial(_change, change), ((chunk,) for chunk in self.chunks))
        for number, (reference, (is_changed, summary)) in enumerate(results):
            if is_changed:
                self.chunks[number] = reference
            yield summary

    def with_user_ids(self) -> Iterator[Source]:
        """See `Chunks`; the driver holds one chunk at a time."""
        for chunk in self.chunks:
            yield fetch(chunk, self.timeout)

    def user_id(self, user: str) -> str:
        """See `Chunks`."""
        return user

    def _call(
        self, function: Callable[..., tuple[Any, Any]], calls: Iterable[tuple[Any, ...]]
    ) -> Iterator[tuple[Any, Any]]:
        return call_on_cluster(function, calls, self.timeout)

    def _sorted_by(self, tables: Sequence[Any], key: str, boundaries: list[int]) -> list[tuple[Any, ...]]:
        """Sort rows by a key of whole numbers.

        Args:
            tables: references of tables that have rows.
            key: their column.
            boundaries: where the sorted rows are cut, before the first row that has this key or a higher one.

        Returns:
            References of sorted tables. Those of a tuple belong together: no key is in two tuples.
        """
        if not tables:
            return []
        sorted_tables = self._sort(tables, key, boundaries)
        ranges = [ends for _, ends in self._call(partial(_key_range, key), ((table,) for table in sorted_tables))]
        return [tuple(sorted_tables[number] for number in numbers) for numbers in without_cut_keys(ranges)]

    def _sort(self, tables: Sequence[Any], key: str, boundaries: list[int]) -> list[Any]:
        """Sort; arguments as `_sorted_by`. Returns references of tables, cut in whatever places Ray Data likes."""
        import ray.data
        from ray.data.context import DataContext, ShuffleStrategy

        # these two sort by plain tasks, which Ray repeats when a node dies
        plain, merging = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED, ShuffleStrategy.SORT_SHUFFLE_PUSH_BASED
        context = DataContext.get_current()
        context.shuffle_strategy = plain if len(tables) * (len(boundaries) + 1) <= MANY_PIECES else merging
        context.execution_no_progress_timeout_s = self.timeout
        return ray.data.from_arrow_refs(list(tables)).sort(key, boundaries=boundaries or None).to_arrow_refs()


@dataclass(frozen=True)
class Facts:
    """What the driver learns of some rows.

    Attributes:
        n_rows: how many they are.
        n_low: those rated below `min_rating`.
        appearances: item_id, first_row and n (interactions) of the items.
        bad_times, bad_ratings: as `InteractionBlocks` counts them.
    """

    n_rows: int
    n_low: int
    appearances: pa.Table
    bad_times: BadRows
    bad_ratings: BadRows


class Appearances:
    """Items of a log with first row and number of interactions, of what its parts say of theirs."""

    def __init__(self):
        names = [("item_id", pa.string()), ("first_row", pa.int64()), ("n", pa.int64())]
        self.merged, self.waiting = pa.schema(names).empty_table(), []

    def add(self, appearances: pa.Table) -> None:
        """Add the items of a part. Memory grows with distinct items, not with parts."""
        self.waiting.append(appearances)
        if sum(map(len, self.waiting)) > max(len(self.merged), MERGE_ROWS):
            self.table()

    def table(self) -> pa.Table:
        """Return item_id, first_row and n of all items."""
        self.merged, self.waiting = _sum_up(pa.concat_tables([self.merged, *self.waiting])), []
        return self.merged


def read_part(blocks: InteractionBlocks, min_rating: float | None, part: Part) -> tuple[pa.Table, Facts]:
    """Read and check a part of a file; arguments and results as `rows_of_block`."""
    of_part = blocks.of_part(part)
    tables, facts = zip(*(rows_of_block(block, min_rating) for block in of_part), strict=True)
    appearances = Appearances()
    for fact in facts:
        appearances.add(fact.appearances)
    n_rows, n_low = sum(fact.n_rows for fact in facts), sum(fact.n_low for fact in facts)
    return pa.concat_tables(tables), Facts(n_rows, n_low, appearances.table(), of_part.bad_times, of_part.bad_ratings)


def rows_of_block(block: Block, min_rating: float | None) -> tuple[pa.Table, Facts]:
    """Make of a block the table that is sorted.

    Args:
        block: checked rows.
        min_rating: the least rating that is kept, or None.

    Returns:
        Columns hash (of the user's id), user_id, item_id, row, time, is_kept; and what the driver needs to know.
    """
    n = len(block.users)
    is_kept = np.ones(n, dtype=bool) if block.ratings is None else block.ratings >= min_rating
    users = block.users.combine_chunks().dictionary_encode()
    names = users.dictionary.cast(pa.binary()).to_pylist()
    hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, names), np.uint64, len(names))
    rows = np.arange(block.first_row, block.first_row + n)
    table = pa.table({
        "hash": hashes.view(np.int64)[users.indices.to_numpy()],
        "user_id": block.users,
        "item_id": block.items,
        "row": rows,
        "time": np.zeros(n) if block.times is None else block.times,
        "is_kept": is_kept,
    })  # fmt: skip
    appearances = pa.table({"item_id": block.items, "first_row": rows, "n": np.ones(n, dtype=np.int64)})
    return table, Facts(n, n - int(is_kept.sum()), _sum_up(appearances), BadRows(), BadRows())


def _sum_up(appearances: pa.Table) -> pa.Table:
    grouped = appearances.group_by("item_id").aggregate([("first_row", "min"), ("n", "sum")])
    return grouped.select(["item_id", "first_row_min", "n_sum"]).rename_columns(["item_id", "first_row", "n"])


def group_users(
    *tables: pa.Table, named: pa.Array, numbers: np.ndarray, has_times: bool, n_rows: int
) -> tuple[pa.Table, np.ndarray]:
    """Make one row of each user.

    Args:
        tables: all rows of some users, as `rows_of_block` makes them.
        named: item ids.
        numbers: of these items.
        has_times: whether the log has times.
        n_rows: of the whole log.

    Returns:
        Columns first_row, user_id, items, times (lists, in order of time and row; without times null) of the users who
        have kept interactions; and interactions by the users' first rows, in equal ranges of rows [BINS].
    """
    table = pa.concat_tables(tables)
    ids = table["user_id"].combine_chunks().dictionary_encode()
    users, rows, times = ids.indices.to_numpy(), table["row"].to_numpy(), table["time"].to_numpy()
    first_rows = np.full(len(ids.dictionary), n_rows)
    np.minimum.at(first_rows, users, rows)
    kept = np.flatnonzero(table["is_kept"].to_numpy())
    order = kept[np.lexsort((rows[kept], times[kept], users[kept]))]
    lengths = np.bincount(users[order], minlength=len(first_rows))
    present = np.flatnonzero(lengths)
    items = pc.index_in(table["item_id"].combine_chunks(), value_set=named).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths[present])])
    stamps = pa.nulls(len(present), pa.list_(pa.int64()))
    if has_times:
        stamps = as_lists(times[order].astype(np.int64), offsets, pa.int64())
    first_rows = first_rows[present]
    sequences = {
        "first_row": first_rows,
        "user_id": ids.dictionary.take(pa.array(present)),
        "items": as_lists(numbers[items[order]], offsets, pa.int32()),
        "times": stamps,
    }
    counts = np.bincount(first_rows * BINS // n_rows, weights=lengths[present], minlength=BINS)
    return pa.table(sequences), counts.astype(np.int64)


def make_chunk(
    *tables: pa.Table, change: Change[Summary], n_items: int, origin: str, has_times: bool
) -> tuple[Source, Summary]:
    """Make a chunk of the rows of some users, and change it.

    Args:
        tables: as `group_users` makes them.
        change: what is done to the chunk.
        n_items: size of the catalogue.
        origin: where the interactions come from, for messages.
        has_times: whether the log has times.
    """
    table = pa.concat_tables(tables)
    table = table.take(pa.array(np.argsort(table["first_row"].to_numpy()))).combine_chunks()
    items, times = (pa.concat_arrays(table[name].chunks) for name in ("items", "times"))
    source = Source(
        unnamed_items(n_items),
        pa.concat_arrays(table["user_id"].chunks),
        items.flatten().to_numpy(),
        np.concatenate([[0], np.cumsum(items.value_lengths().to_numpy())]),
        times.flatten().to_numpy() if has_times else None,
        origin=origin,
    )
    return change(source)


def first_rows_between(histogram: np.ndarray, n_rows: int, count: int) -> list[int]:
    """Choose first rows of users that divide the interactions into about equal parts.

    Args:
        histogram: interactions by the users' first rows, in equal ranges of rows [BINS].
        n_rows: of the log.
        count: of the parts.

    Returns:
        At most `count` - 1 rows, ascending.
    """
    before = np.cumsum(histogram)
    places = np.searchsorted(before, [before[-1] * part // count for part in range(1, count)], side="right")
    # the first row of a range: first_row * BINS // n_rows >= place
    return sorted({-(-place * n_rows // BINS) for place in places.tolist()} - {0, n_rows})


def without_cut_keys(ranges: Sequence[tuple[int, int] | None]) -> list[list[int]]:
    """Put tables whose ranges of keys meet together.

    Args:
        ranges: first and last key of each table; None: it has no rows.

    Returns:
        Numbers of tables, in the order of their keys.
    """
    present = sorted((ends, number) for number, ends in enumerate(ranges) if ends is not None)
    groups: list[list[int]] = []
    last_key = None
    for (first, last), number in present:
        if last_key is not None and first <= last_key:
            groups[-1].append(number)
            last_key = max(last_key, last)
        else:
            groups.append([number])
            last_key = last
    return groups


def _key_range(key: str, table: pa.Table) -> tuple[None, tuple[int, int] | None]:
    if not len(table):
        return None, None
    ends = pc.min_max(table[key]).as_py()
    return None, (ends["min"], ends["max"])


def _look(function: Callable[[Source], Summary], source: Source) -> tuple[None, Summary]:
    return None, function(source)


def _change(change: Change[Summary], source: Source) -> tuple[Source | None, tuple[bool, Summary]]:
    changed, summary = change(source)
    is_changed = changed is not source
    return (changed if is_changed else None), (is_changed, summary)
