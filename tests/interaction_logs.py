"""Small logs of interactions for all engines of data preparation, and what an engine makes of them."""

import contextlib
import csv
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from distill.data import dataset
from distill.data.config import PrepareSettings
from distill.data.out_of_core.prepare import SCRATCH
from distill.data.prepare import prepare
from distill.data.sources import table, text_table
from distill.runtime.errors import UserError

ROW_GROUP = 3  # of parquet files


def cut_small(patch, chunks, chunk_rows, block_rows, csv_bytes):
    """Several blocks, chunks and row groups also for a few rows.

    Args:
        patch: pytest's monkeypatch.
        chunks: module with the size of an engine's chunks.
        chunk_rows: interactions of a chunk.
        block_rows: rows that are read of parquet at once.
        csv_bytes: bytes that are read of text at once.
    """
    patch.setattr(chunks, "CHUNK_ROWS", chunk_rows)
    patch.setattr(dataset, "ROW_GROUP", 2)
    patch.setattr(table, "PARQUET_BLOCK", block_rows)
    patch.setattr(text_table, "CSV_BLOCK", csv_bytes)


def outcome(open_prepared):
    """The files that an engine writes and the facts of the manifest, or its refusal.

    Args:
        open_prepared: folder -> context of what is prepared.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            with open_prepared(folder) as prepared:
                facts = prepared.facts()
                prepared.write(folder)
        except UserError as error:
            assert not (folder / SCRATCH).exists()
            return str(error)
        return facts, prepared.short_users, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def plain_outcome(config):
    """What the engine memory makes."""
    return outcome(lambda folder: contextlib.nullcontext(prepare(config)))


def write_log(folder, form, rows, catalogue):
    """Write rows (user, item, time, rating) and items (id, title) as a table or RecBole's files."""
    head, items_head = ["user_id", "item_id", "timestamp", "rating"], ["item_id", "title"]
    if form == "parquet":
        columns = [[row[column] for row in rows] for column in range(4)]
        kinds = (pa.string(), pa.string(), pa.float64(), pa.int64())
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        pq.write_table(
            pa.table(dict(zip(head, arrays, strict=True))), folder / "interactions.parquet", row_group_size=ROW_GROUP
        )
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
LOGS = st.tuples(
    st.lists(ROW, min_size=12, max_size=60),
    st.sampled_from(["parquet", "csv", "recbole"]),
    st.sampled_from(CATALOGUES),
    OPTIONS,
)


def write_config(folder, log):
    """Write one of LOGS; returns the settings."""
    rows, form, catalogue, options = log
    cut, options = options["cut"], {name: value for name, value in options.items() if name != "cut"}
    if cut:
        options |= {"split": "global_cut", "valid_from": cut[0], "test_from": cut[1]}
    write_log(folder, form, rows, catalogue)
    return PrepareSettings(format="recbole" if form == "recbole" else "table", input=folder, **options)


HEAD = "user_id,item_id,timestamp,rating\n"
ROWS = "u,a,1,5\nu,b,2,5\nu,c,3,5\nv,a,1,5\nv,b,2,5\nv,c,3,5\n"


REFUSALS = [
    (HEAD + ROWS + "u,,4,5\n", r"interactions\.csv:8: expected item id, got nothing"),
    (HEAD + ROWS + "  ,a,4,5\n", r"interactions\.csv:8: expected user id, got nothing"),
    (HEAD + ROWS + "u,a,soon,5\n", r"interactions\.csv:8: expected a time, .*, got 'soon'\. Mend or remove"),
    (HEAD + ROWS + "u,a,2024-05-31,5\n", r"\.csv:2: expected a time, .* same form; got '1' here and other forms"),
    (HEAD + ROWS + "u,a,nan,5\n" * 40, r"\.csv:8: expected a time in seconds, got nan \(40 such rows\)"),
    (HEAD + ROWS + "u,a,4,x\n", r"\.csv:8: expected a rating as a number, got 'x'\."),
    (HEAD + ROWS + "u,a,4,inf\n" * 40, r"\.csv:8: expected a rating as a number, got inf \(40 such rows\)"),
    (
        HEAD + ROWS + "u,z,4,5\n" * 40,
        r"\.csv:8: unknown item 'z': .* 3 items of .*items\.csv \(40 such inter",
    ),
    (HEAD + ROWS + "u,a,4\n", r"\.csv:8: malformed or cut off: expected 4 fields, got 3: 'u,a,4'"),
    (HEAD.replace("user_id", "who") + ROWS, r"missing column 'user_id'\. .*Name it with --user_column"),
    (HEAD.replace("timestamp", "when") + ROWS, r"missing column 'timestamp'\. .*--time_column \(null: rows"),
    (HEAD, r"no user with at least 3 interactions, expected some"),
    ("", r"expected a header with distinct column names, got none"),
]


def write_refused(folder, text):
    """Write one of REFUSALS, with a catalogue of three items; returns the settings."""
    (folder / "interactions.csv").write_text(text)
    (folder / "items.csv").write_text("item_id,title\na,A\nb,B\nc,C\n")
    return PrepareSettings(format="table", input=folder, min_rating=1.0)
