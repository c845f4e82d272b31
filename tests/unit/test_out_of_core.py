"""Data preparation in bounded memory: the same files, and the same refusals, as the plain engine."""

import contextlib
import csv
import dataclasses
import logging
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.data import dataset, out_of_core
from distill.data.config import EngineSettings, PrepareSettings, check_engine
from distill.data.out_of_core import chunks, database
from distill.data.out_of_core.chunks import between_users
from distill.data.out_of_core.prepare import SCRATCH, in_pieces, prepare_out_of_core
from distill.data.out_of_core.splitting import order_statistic
from distill.data.prepare import prepare
from distill.data.sources import Source, table, text_table
from distill.runtime.errors import UserError
from scripts import prepare_data

LIMIT = "1GB"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Several blocks, chunks and row groups also for a few rows."""
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 3)
    monkeypatch.setattr(dataset, "ROW_GROUP", 2)
    monkeypatch.setattr(table, "PARQUET_BLOCK", 4)
    monkeypatch.setattr(text_table, "CSV_BLOCK", 80)
    monkeypatch.setattr(database, "BATCH_ROWS", 4)


def outcome(engine, config):
    """The files that an engine writes and the facts of the manifest, or its refusal."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            if engine == "memory":
                prepared = prepare(config)
                prepared.write(folder)
                facts = prepared.facts()
            else:
                with prepare_out_of_core(config, LIMIT, folder) as prepared:
                    facts = prepared.facts()
                    prepared.write(folder)
        except UserError as error:
            assert not (folder / SCRATCH).exists()
            return str(error)
        return facts, prepared.short_users, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_log(folder, form, rows, catalogue):
    """Write rows (user, item, time, rating) and items (id, title) as a table or RecBole's files."""
    head, items_head = ["user_id", "item_id", "timestamp", "rating"], ["item_id", "title"]
    if form == "parquet":
        columns = [[row[column] for row in rows] for column in range(4)]
        kinds = (pa.string(), pa.string(), pa.float64(), pa.int64())
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        pq.write_table(pa.table(dict(zip(head, arrays, strict=True))), folder / "interactions.parquet")
    else:
        is_table = form == "csv"
        head = head if is_table else [f"{name}:token" for name in head]
        with open(folder / ("interactions.csv" if is_table else "N.inter"), "w", newline="") as file:
            csv.writer(file, delimiter="," if is_table else "\t", lineterminator="\n").writerows([head, *rows])
    if catalogue:
        with open(folder / ("N.item" if form == "recbole" else "items.csv"), "w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if form == "recbole" else ",", lineterminator="\n")
            writer.writerows([items_head, *catalogue])


ROW = st.tuples(
    st.sampled_from(["u", "v", "w", "ü", "10"]),
    st.sampled_from("abcde"),
    st.sampled_from([-1.5, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 1e9]),
    st.integers(1, 5),
)
CATALOGUES = (
    (),
    tuple(zip("edcbaf", ("E", "D", "C", "B", "A", "F"), strict=True)),
    tuple(zip("abcdef", ("A", "", "C", "D", "<b>", "F"), strict=True)),
)
OPTIONS = st.fixed_dictionaries(
    {
        "min_rating": st.sampled_from([None, None, 2.0, 4.0]),
        "duplicates": st.sampled_from([None, "exact", "first"]),
        "k_core": st.sampled_from([None, 0, 2, 4]),
        "item_core": st.sampled_from([None, 0, 1, 3]),
        "clean_html": st.booleans(),
        "empty_text": st.sampled_from(["keep", "keep", "keep", "drop", "drop", "error"]),
        "short_users": st.sampled_from(["drop", "drop", "error"]),
        "withhold": st.sampled_from([0.0, 0.0, 0.2]),
        "cut": st.sampled_from([None, (None, None), (0.3, 0.6), (0.5, "1970-01-01T00:00:02")]),
        "seed": st.integers(0, 3),
    }
)


@given(
    st.lists(ROW, min_size=12, max_size=60),
    st.sampled_from(["parquet", "csv", "recbole"]),
    st.sampled_from(CATALOGUES),
    OPTIONS,
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_engines_write_the_same_bytes_or_refuse_with_the_same_words(rows, form, catalogue, options):
    cut = options.pop("cut")
    if cut:
        options |= {"split": "global_cut", "valid_from": cut[0], "test_from": cut[1]}
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder), form, rows, catalogue)
        form = "recbole" if form == "recbole" else "table"
        config = PrepareSettings(format=form, input=Path(folder), **options)
        assert outcome("duckdb", config) == outcome("memory", config)
