"""Data preparation in bounded memory: the same files, and the same refusals, as the plain engine."""

import dataclasses
import itertools
import json
import resource
import sys
import tempfile
from pathlib import Path

import interaction_logs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interaction_logs import LOGS, REFUSALS, cut_small, plain_outcome, write_config, write_log, write_refused

from distill.data import dataset
from distill.data.config import EngineSettings, PrepareSettings, check_engine
from distill.data.out_of_core import chunks, database
from distill.data.out_of_core.chunks import between_users
from distill.data.out_of_core.prepare import SCRATCH, in_pieces, prepare_out_of_core
from distill.data.out_of_core.splitting import order_statistic
from distill.data.sources import Source, table
from distill.runtime.errors import UserError
from scripts import prepare_data

LIMIT = "1GB"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    cut_small(monkeypatch, chunks, chunk_rows=3, block_rows=4, csv_bytes=80)
    monkeypatch.setattr(database, "BATCH_ROWS", 4)


def outcome(engine, config):
    """What an engine makes, as `interaction_logs.outcome`."""
    if engine == "memory":
        return plain_outcome(config)
    return interaction_logs.outcome(lambda folder: prepare_out_of_core(config, LIMIT, folder))


@given(LOGS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_engines_write_the_same_bytes_or_refuse_with_the_same_words(log):
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(Path(folder), log)
        assert outcome("duckdb", config) == outcome("memory", config)


@pytest.mark.parametrize(("text", "message"), REFUSALS)
def test_refusals_have_the_words_of_the_plain_engine(tmp_path, text, message):
    config = write_refused(tmp_path, text)
    refusal = outcome("duckdb", config)
    assert refusal == outcome("memory", config)
    with pytest.raises(UserError, match=message):
        raise UserError(refusal)


def test_a_damaged_parquet_file_is_refused_with_the_words_of_the_plain_engine(tmp_path):
    path = tmp_path / "interactions.parquet"
    write_log(tmp_path, "parquet", [("u", item, 0.0, 1) for item in "abc"], ())
    path.write_bytes(path.read_bytes()[:-20])
    config = PrepareSettings(format="table", input=tmp_path)
    assert outcome("duckdb", config) == outcome("memory", config)
    assert "is not a readable parquet file" in outcome("duckdb", config)


@pytest.mark.parametrize(
    "kind", [pa.int64(), pa.dictionary(pa.int32(), pa.int64()), pa.dictionary(pa.int8(), pa.string())]
)
@pytest.mark.parametrize("times", [pa.timestamp("ms"), pa.date32(), pa.string()])
def test_types_of_parquet_columns(tmp_path, kind, times):
    numbers = [3, 1, 2, 2, 3, 1]
    days = pa.array([5, 4, 4, 1, 2, 3], pa.int32()).cast(pa.date32())
    ids = pa.array(numbers).cast(pa.string()) if kind == pa.dictionary(pa.int8(), pa.string()) else pa.array(numbers)
    columns = {
        "user_id": pa.array([7, 7, 7, 8, 8, 8]),
        "item_id": ids.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else ids,
        "timestamp": days.cast(times),
    }
    pq.write_table(pa.table(columns), tmp_path / "interactions.parquet")
    config = PrepareSettings(format="table", input=tmp_path)
    facts, _, files = outcome("duckdb", config)
    assert (facts, 0, files) == outcome("memory", config)
    sequences = pq.read_table(pa.BufferReader(files["sequences.parquet"])).to_pydict()
    # items in order of appearance: 3 -> 0, 1 -> 1, 2 -> 2; the first user's first day has two items, in file order
    assert sequences["items"] == [[1, 2, 0], [2, 0, 1]]
    assert sequences["timestamps"][0] == [4 * 86400, 4 * 86400, 5 * 86400]


def test_recbole_without_times_keeps_the_order_of_the_lines(tmp_path):
    (tmp_path / "N.inter").write_text("user_id:token\titem_id:token\n" + "u\tc\nv\ta\nu\ta\nv\tc\nu\tb\nv\tb\n")
    config = PrepareSettings(format="recbole", input=tmp_path)
    _, _, files = outcome("duckdb", config)
    assert files == outcome("memory", config)[2]
    sequences = pq.read_table(pa.BufferReader(files["sequences.parquet"])).to_pydict()
    assert sequences["items"] == [[0, 1, 2], [1, 0, 2]] and sequences["timestamps"] == [None, None]


def test_split_files_of_recbole_and_other_formats_are_refused(tmp_path):
    (tmp_path / "N.test.inter").write_text("user_id:token\titem_id_list:token_seq\titem_id:token\nu\ta b\tc\n")
    assert "not split files. Use --engine memory" in outcome(
        "duckdb", PrepareSettings(format="recbole", input=tmp_path)
    )
    for form in ("demo", "lcrec", "amazon", "movielens"):
        with pytest.raises(UserError, match=f"reads the formats table and recbole, not {form}. Use --engine memory"):
            check_engine(PrepareSettings(format=form), EngineSettings(engine="duckdb"))


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 5), st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_tables_are_cut_between_users(lengths, batch_rows, rows):
    users = np.repeat(np.arange(len(lengths)), lengths)
    table = pa.table({"user": users})
    tables = [part["user"].to_pylist() for part in between_users(table.to_batches(max_chunksize=batch_rows), rows)]
    assert [user for part in tables for user in part] == users.tolist()
    assert all(len(part) >= rows for part in tables[:-1])
    assert all(before[-1] < after[0] for before, after in itertools.pairwise(tables))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_tables_are_cut_anew(lengths, rows):
    ends = np.cumsum(lengths)
    tables = [pa.table({"n": np.arange(end - length, end)}) for length, end in zip(lengths, ends, strict=True)]
    pieces = [piece["n"].to_pylist() for piece in in_pieces(tables, rows)]
    assert [number for piece in pieces for number in piece] == list(range(ends[-1]))
    assert all(len(piece) == rows for piece in pieces[:-1])


LOW, HIGH = -(2**63), 2**63 - 1
TIMES = st.lists(st.one_of(st.integers(-3, 3), st.integers(LOW, HIGH)), min_size=1, max_size=20)


class Pieces(list):
    """Chunks in memory."""

    def map(self, function):
        """Yield what a function makes of each chunk."""
        return map(function, self)


@given(TIMES, st.data())
@settings(max_examples=100, deadline=None)
def test_order_statistic(values, data):
    times = np.array(values, dtype=np.int64)
    pieces = [piece for piece in (times[::2], times[1::2]) if len(piece)]
    sources = [Source(pa.table({}), pa.array([0]), piece, np.array([0, len(piece)]), piece) for piece in pieces]
    rank = data.draw(st.integers(0, len(times) - 1))
    assert order_statistic(Pieces(sources), rank, min(values), max(values)) == sorted(values)[rank]


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), ("2.5 GiB", 5 * 2**29), ("800mb", 8 * 10**8), ("3000000KB", 3 * 10**9)]
)
def test_memory_limits(text, size):
    assert database.memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "4", "4 G B", "-4GB", "all", "1e3GB", "100MB"])
def test_memory_limits_that_are_none(text):
    with pytest.raises(UserError, match=r"memory_limit: expected (a size such as 4GB|at least 750MB)"):
        database.memory_bytes(text)


def test_without_duckdb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    write_log(tmp_path, "csv", [("u", "a", 0, 1)], ())
    assert "pip install -c constraints.txt -e '.[duckdb]'" in outcome(
        "duckdb", PrepareSettings(format="table", input=tmp_path)
    )


@pytest.fixture
def log(tmp_path):
    """A table of 30,000 interactions, and the config of a command that prepares it by DuckDB."""
    rng = np.random.default_rng(0)
    users = [f"user-{number:020d}" for number in rng.integers(0, 5000, 30_000)]
    columns = {"user_id": users, "item_id": rng.integers(0, 99, 30_000).astype(str), "timestamp": np.arange(30_000)}
    (tmp_path / "raw").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "raw/interactions.parquet")
    return prepare_data.Config(
        format="table", input=tmp_path / "raw", output=tmp_path / "out/dataset", engine="duckdb", short_users="drop"
    )


@pytest.fixture
def usual_pieces(small_pieces, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 5000)
    monkeypatch.setattr(table, "PARQUET_BLOCK", 10_000)
    monkeypatch.setattr(database, "BATCH_ROWS", 5000)
    monkeypatch.setattr(dataset, "ROW_GROUP", 2000)


def test_a_memory_limit_that_is_too_small(log, usual_pieces, monkeypatch):
    monkeypatch.setattr(database, "PYTHON_BYTES", 749 * 10**6)  # leaves 1 MB
    with pytest.raises(UserError, match=r"--memory_limit 750MB is too small .* --memory_limit 1\.5GB"):
        prepare_data.main(dataclasses.replace(log, memory_limit="750MB"))
    assert not list(log.output.parent.glob("*"))


@pytest.mark.parametrize("name", ["OutOfMemoryException", "TransactionException", "ArrowInvalid"])
def test_lack_of_memory_in_statements_commits_and_while_rows_are_fetched(tmp_path, name):
    base = database.Database(tmp_path, LIMIT)
    kind = pa.ArrowInvalid if name == "ArrowInvalid" else getattr(base.duckdb, name)
    with pytest.raises(UserError, match="too small for these interactions"), base._errors():
        raise kind("Out of Memory Error: could not allocate block of size 256.0 KiB")
    with pytest.raises(kind, match="Catalog"), base._errors():
        raise kind("Catalog Error")
    base.close()


def test_a_full_disk(log, usual_pieces):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"A file of .*dataset is larger than its disk or `ulimit -f` allows"):
            prepare_data.main(log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(log.output.parent.glob("*"))


def test_temporary_files_may_fill_the_disk(tmp_path):
    base = database.Database(tmp_path, LIMIT)
    error = base.duckdb.OutOfMemoryException(
        "failed to offload: limit was set by the 'max_temp_directory_size' setting"
    )
    with pytest.raises(OSError, match="No space left on device"), base._errors():
        raise error
    base.close()


def test_the_artifact_is_that_of_the_plain_engine_and_finished_for_it(log, usual_pieces):
    prepare_data.main(log)
    folder = log.output
    assert sorted(path.name for path in folder.iterdir()) == [
        "items.parquet", "manifest.json", "sequence_items.npy", "sequence_starts.npy", "sequences.parquet",
    ]  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    plain = dataclasses.replace(log, engine="memory", memory_limit="4GB")
    seconds = (folder / "manifest.json").stat().st_mtime_ns
    prepare_data.main(plain)  # finished
    assert (folder / "manifest.json").stat().st_mtime_ns == seconds
    prepare_data.main(dataclasses.replace(plain, overwrite=True))
    again = json.loads((folder / "manifest.json").read_text())
    for key in ("fingerprint", "files", "facts", "identity"):
        assert manifest[key] == again[key]


def test_what_a_kill_leaves_is_removed_at_the_next_start(log, usual_pieces, monkeypatch):
    def killed(*_):
        raise SystemExit(9)  # as after SIGKILL: nothing is cleaned up

    with monkeypatch.context() as patch:
        patch.setattr("distill.data.out_of_core.prepare._prepare", killed)
        patch.setattr("shutil.rmtree", lambda folder: None)
        with pytest.raises(SystemExit):
            prepare_data.main(log)
    assert (log.output.parent / "dataset.partial" / SCRATCH / "interactions.duckdb").exists()
    prepare_data.main(log)
    assert [path.name for path in log.output.parent.iterdir()] == ["dataset"]
