"""Data preparation on a Ray cluster, its functions called in this process: the same files and refusals as alone."""

import contextlib
import dataclasses
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interaction_logs import LOGS, REFUSALS, cut_small, outcome, plain_outcome, write_config, write_log, write_refused
from ray import cloudpickle

from distill.data.config import EngineSettings, PrepareSettings, check_engine
from distill.data.out_of_core import ray_chunks
from distill.data.out_of_core.prepare import _prepare
from distill.data.out_of_core.ray_chunks import RayChunks, first_rows_between, without_cut_keys
from distill.data.sources import Options, table
from distill.runtime.errors import UserError


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    cut_small(monkeypatch, ray_chunks, chunk_rows=8, block_rows=4, csv_bytes=80)


class HereChunks(RayChunks):
    """Chunks whose functions are called in this process, after the journey that a cluster would send them on."""

    piece = None  # rows of a sorted table, where Ray Data would cut it

    def _call(self, function, calls):
        for arguments in calls:
            yield cloudpickle.loads(cloudpickle.dumps(function))(*cloudpickle.loads(cloudpickle.dumps(arguments)))

    def _sort(self, tables, key, boundaries):
        rows = pa.concat_tables(tables).sort_by(key)
        ends = [0, *np.searchsorted(rows[key].to_numpy(), boundaries), len(rows)]
        parts = [rows.slice(start, end - start) for start, end in itertools.pairwise(ends)]
        size = self.piece or max(1, len(rows))
        return [part.slice(start, size) for part in parts for start in range(0, max(1, len(part)), size)]

    def with_user_ids(self):
        """Yield the chunks."""
        yield from self.chunks


def ray_outcome(config, kind=HereChunks):
    """What the engine ray makes."""
    return outcome(lambda folder: contextlib.nullcontext(_prepare(config, kind(60.0))))


@given(LOGS, st.sampled_from([None, 1, 2, 5]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_bytes_or_refusals_as_the_plain_engine_wherever_tables_are_cut(log, piece):
    kind = type("Cut", (HereChunks,), {"piece": piece})
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder), log)
        assert ray_outcome(config, kind) == plain_outcome(config)


@pytest.mark.parametrize(("text", "message"), REFUSALS)
def test_refusals_have_the_words_of_the_plain_engine(tmp_path, text, message):
    config = write_refused(tmp_path, text)
    refusal = ray_outcome(config)
    assert refusal == plain_outcome(config)
    with pytest.raises(UserError, match=message):
        raise UserError(refusal)


GOOD = [(user, item, f"{second}", 5.0) for user in "uv" for second, item in enumerate("abc")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("u", None, "4", 5.0)], r"parquet row 6: expected item id, got nothing"),
        ([(" ", "a", "4", 5.0)], r"parquet row 6: expected user id, got nothing"),
        ([("u", "a", None, 5.0)], r"parquet row 6: expected a time, .*, got None\. Mend or remove"),
        (
            [("u", "a", "soon", 5.0), ("u", "", "4", 5.0)],
            r"row 6: expected a time, .*, got 'soon'|row 7: expected item",
        ),
        ([("u", "a", "2024-05-31", 5.0)] * 9, r"parquet row 0: expected a time, .* same form; got '0' here and other"),
        ([("u", "a", "nan", 5.0)] * 9, r"parquet row 6: expected a time in seconds, got nan \(9 such rows\)"),
        ([("u", "a", "4", float("inf"))] * 9, r"parquet row 6: expected a rating .*, got inf \(9 such rows\)"),
        ([("u", "z", "4", 5.0)] * 9, r"parquet row 6: unknown item 'z': .* 3 items of .*items\.csv \(9 such inter"),
    ],
)
def test_refusals_of_parts_that_are_read_apart(tmp_path, rows, message):
    names = ("user_id", "item_id", "timestamp", "rating")
    columns = dict(zip(names, map(list, zip(*GOOD, *rows, strict=True)), strict=True))
    config = write_refused(tmp_path, "")
    (tmp_path / "interactions.csv").unlink()
    pq.write_table(pa.table(columns), tmp_path / "interactions.parquet", row_group_size=3)
    refusal = ray_outcome(config)
    assert refusal == plain_outcome(config)
    with pytest.raises(UserError, match=message):
        raise UserError(refusal)


@pytest.mark.parametrize("kind", [pa.int64(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("times", [pa.timestamp("ms"), pa.date32(), pa.string()])
def test_types_of_parquet_columns(tmp_path, kind, times):
    numbers = pa.array([3, 1, 2, 2, 3, 1] * 3)
    items = numbers.cast(pa.string()).dictionary_encode() if pa.types.is_dictionary(kind) else numbers
    days = pa.array([5, 4, 4, 1, 2, 3] * 3, pa.int32()).cast(pa.date32()).cast(times)
    columns = {"user_id": pa.array([7, 8, 7, 8, 7, 8] * 3), "item_id": items, "timestamp": days}
    pq.write_table(pa.table(columns), tmp_path / "interactions.parquet", row_group_size=4)
    config = PrepareSettings(format="table", input=tmp_path)
    assert isinstance(plain_outcome(config), tuple)
    assert ray_outcome(config) == plain_outcome(config)


def parts_of(folder):
    """Write a parquet file of 12 rows; returns it and its parts."""
    write_log(folder, "parquet", [("u", item, float(time), 1) for time, item in enumerate("abcabcabcabc")], ())
    blocks = table.read_blocks(folder, Options())
    return blocks.path, blocks.parts


def test_parts_hold_all_rows_once(tmp_path):
    path, parts = parts_of(tmp_path)
    assert [part.first_row for part in parts] == [0, 6]  # row groups of 3, parts of 4 rows or more
    rows = [row for part in parts for block in part.open() for row in block.to_pylist()]
    assert rows == pq.read_table(path, columns=["user_id", "item_id", "timestamp"]).to_pylist()


def test_a_node_without_the_file_or_with_another_one_is_named(tmp_path):
    path, parts = parts_of(tmp_path)
    path.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"cannot read .*interactions\.parquet \(No such file .*same path\."):
        list(parts[0].open())
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"is another file on .* \(4 bytes\) than where the command was started"):
        list(parts[0].open())


@given(st.lists(st.lists(st.integers(0, 12), max_size=4), max_size=8))
def test_tables_that_share_a_key_stay_together(tables):
    """Every key is in one group, all rows are in some group, and groups ascend."""
    groups = without_cut_keys([(min(keys), max(keys)) if keys else None for keys in tables])
    assert sorted(number for group in groups for number in group) == [n for n, keys in enumerate(tables) if keys]
    ranges = [[key for number in group for key in tables[number]] for group in groups]
    assert all(max(before) < min(after) for before, after in itertools.pairwise(ranges))


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(1, 50)), min_size=1, max_size=60), st.integers(1, 9))
def test_first_rows_divide_the_interactions_evenly(users, count):
    first_rows, lengths = np.array(users).T
    bins = np.bincount(first_rows * ray_chunks.BINS // 1000, weights=lengths, minlength=ray_chunks.BINS)
    boundaries = first_rows_between(bins, 1000, count)
    assert boundaries == sorted(set(boundaries)) and len(boundaries) < count
    sizes = np.bincount(np.searchsorted(boundaries, first_rows, side="right"), weights=lengths)
    heaviest = np.bincount(first_rows, weights=lengths).max()  # rows of one bin are not divided
    assert sizes.max() <= lengths.sum() / count + heaviest


def test_settings_of_the_engine():
    for form in ("demo", "lcrec", "amazon", "movielens", "setrec"):
        with pytest.raises(UserError, match=f"--engine ray reads the formats table and recbole, not {form}"):
            check_engine(PrepareSettings(format=form), EngineSettings(engine="ray"))
    with pytest.raises(UserError, match="--ray_address is for --engine ray; add it"):
        check_engine(PrepareSettings(), EngineSettings(ray_address="10.0.0.1:6379"))
    with pytest.raises(UserError, match="--ray_timeout is for --engine ray"):
        check_engine(PrepareSettings(format="table"), EngineSettings(engine="duckdb", ray_timeout=5))
    check_engine(PrepareSettings(format="table"), EngineSettings(engine="ray", ray_address="auto"))
    assert not any(field.metadata.get("identity", True) for field in dataclasses.fields(EngineSettings))
