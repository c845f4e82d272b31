"""Write a data set as files of other projects: LC-Rec's JSON and RecBole's atomic files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.data.dataset import TEXT_COLUMNS, Dataset
from distill.runtime.errors import UserError
from distill.runtime.parquet import read_parquet


def write_lcrec(folder: Path, name: str, dataset: Dataset, semantic_ids: Iterable[list[str]] | None = None) -> None:
    """Write LC-Rec's files; times have no place in them.

    NAME.inter.json (user id -> item numbers), NAME.item.json (texts), NAME.item2id and, with semantic IDs,
    NAME.index.json.

    Args:
        folder: an existing folder.
        name: NAME of the files.
        dataset: what to write.
        semantic_ids: the tokens of each item, in the order of the items [n_items, levels].

    Raises:
        UserError: an item id that cannot stand in the files.
    """
    ids = _plain_ids(dataset.items["item_id"], "item")
    numbers = [str(number) for number in range(dataset.n_items)]
    if semantic_ids is not None:
        _write_object(folder / f"{name}.index.json", zip(numbers, semantic_ids, strict=True))
    sequences = (dataset.sequence(user).tolist() for user in range(dataset.n_users))
    _write_object(folder / f"{name}.inter.json", zip(dataset.user_ids.to_pylist(), sequences, strict=True))
    texts = dataset.items.select(TEXT_COLUMNS).to_pylist()
    _write_object(folder / f"{name}.item.json", zip(numbers, texts, strict=True))
    lines = (f"{item}\t{number}\n" for item, number in zip(ids.to_pylist(), numbers, strict=True))
    (folder / f"{name}.item2id").write_text("".join(lines), encoding="utf-8")


def write_recbole(folder: Path, name: str, dataset: Dataset) -> None:
    """Write RecBole's files, with typed headers: NAME.inter (user_id, item_id, timestamp) and NAME.item (texts).

    Without times, positions in the sequence take their place. In texts, tabs and line ends become spaces, and in a text
    that begins with a double quote all double quotes become single ones: RecBole would read a quoted field.

    Args:
        folder: an existing folder.
        name: NAME of the files.
        dataset: what to write.

    Raises:
        UserError: a user or item id that cannot stand in the files.
    """
    users, items = _plain_ids(dataset.user_ids, "user"), _plain_ids(dataset.items["item_id"], "item")
    owners = np.repeat(np.arange(dataset.n_users), np.diff(dataset.offsets))
    times = read_parquet(dataset.artifact.folder / "sequences.parquet", ("timestamps",))["timestamps"]
    if times.null_count:
        stamps = np.arange(len(owners)) - dataset.offsets[owners]
    else:
        stamps = times.combine_chunks().flatten().to_numpy()
    columns = {
        "user_id:token": users.take(pa.array(owners)),
        "item_id:token": items.take(pa.array(dataset.values)),
        "timestamp:float": pa.array(stamps),
    }
    _write_tsv(folder / f"{name}.inter", columns)
    texts = {f"{column}:token_seq": _one_line(dataset.items[column]) for column in TEXT_COLUMNS}
    _write_tsv(folder / f"{name}.item", {"item_id:token": items, **texts})


def _write_object(path: Path, pairs: Iterable[tuple[str, object]]) -> None:
    """Write a JSON object, one key per line."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("{")
        for number, (key, value) in enumerate(pairs):
            file.write(f"{',' if number else ''}\n{json.dumps(key)}: {json.dumps(value)}")
        file.write("\n}\n")


def _write_tsv(path: Path, columns: dict[str, pa.Array]) -> None:
    """Write a header and one line per row, without quotes, which RecBole's files do not have."""
    rows = pa.table({name: column.cast(pa.string()) for name, column in columns.items()})
    with open(path, "w", encoding="utf-8") as file:
        file.write("\t".join(columns) + "\n")
        for batch in rows.to_batches(1 << 16):
            lines = pc.binary_join_element_wise(*batch.columns, "\t")
            file.write("\n".join([*lines.to_pylist(), ""]))


def _one_line(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Make texts fit a field of a file without quotes."""
    texts = pc.replace_substring_regex(pc.fill_null(texts, ""), r"[\t\r\n]+", " ")
    return pc.if_else(pc.starts_with(texts, '"'), pc.replace_substring(texts, '"', "'"), texts)


def _plain_ids(ids: pa.ChunkedArray, noun: str) -> pa.Array:
    """Return the ids if all of them can stand in a file of tab-separated fields.

    Raises:
        UserError: names the first that cannot.
    """
    bad = pc.filter(ids, pc.match_substring_regex(ids, r'[\t\r\n"]|^\s*$'))
    if len(bad):
        raise UserError(
            f"{noun} id {bad[0].as_py()!r} ({len(bad)} such ids): tabs, line ends, double quotes and blank ids have no "
            "place in the files to write. Prepare the data set anew with other ids."
        )
    return ids.combine_chunks()
