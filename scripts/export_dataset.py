"""A data set back to other projects' files, so that they can be run on the same data.

python scripts/export_dataset.py --dataset runs/demo/dataset --format recbole --output exported/demo
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distill.data.dataset import TEXT_COLUMNS, Dataset
from distill.runtime.artifacts import check_agreement
from distill.runtime.config import run
from distill.runtime.errors import UserError
from distill.runtime.logs import log
from distill.runtime.parquet import read_parquet


@dataclass(frozen=True)
class Config:
    """Write a data set as LC-Rec's or RecBole's files: python scripts/export_dataset.py [--field value ...]."""

    dataset: Path
    """Dataset artifact."""
    output: Path
    """Folder to make; its name is the data set's name in the files, as both projects expect."""
    format: Literal["lcrec", "recbole"]
    """lcrec (NAME.inter.json, NAME.item.json, NAME.item2id) or recbole (NAME.inter, NAME.item)."""
    semantic_ids: Path | None = None
    """Semantic IDs artifact: with lcrec also write NAME.index.json."""


def main(config: Config) -> None:
    """Check, then write all files or none."""
    if config.output.exists() and (not config.output.is_dir() or any(config.output.iterdir())):
        raise UserError(f"{config.output} exists and is not empty; name another folder or remove it yourself.")
    if config.semantic_ids is not None and config.format != "lcrec":
        raise UserError(f"Format {config.format} has no file for semantic IDs: leave out --semantic_ids.")
    dataset = Dataset.load(config.dataset)
    name = config.output.resolve().name
    partial = config.output.with_name(name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        if config.format == "lcrec":
            write_lcrec(partial, name, dataset, config.semantic_ids)
        else:
            write_recbole(partial, name, dataset)
        os.replace(partial, config.output)
    except OSError as error:
        raise UserError(f"Cannot write {config.output}: {error.strerror}.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info(f"wrote {', '.join(sorted(path.name for path in config.output.iterdir()))} to {config.output}")
    if dataset.ends is not None:
        log.info("These files do not say where time was cut: those who read them split by leave-one-out.")


def write_lcrec(folder: Path, name: str, dataset: Dataset, semantic_ids: Path | None) -> None:
    """NAME.inter.json (user -> item numbers), NAME.item.json (texts), NAME.item2id and perhaps NAME.index.json.

    Users keep their ids. Times have no place in these files.
    """
    ids = _plain(dataset.items["item_id"], "item")
    if semantic_ids is not None:
        from distill.semantic_ids.ids import SemanticIDs, token

        codes = SemanticIDs.load(semantic_ids, dataset.n_items)
        check_agreement(dataset.artifact, codes.artifact)
        index = ([token(level, int(code)) for level, code in enumerate(row)] for row in codes.codes)
        _write_object(folder / f"{name}.index.json", zip(map(str, range(dataset.n_items)), index, strict=True))
    users = zip(
        dataset.user_ids.to_pylist(), (dataset.sequence(u).tolist() for u in range(dataset.n_users)), strict=True
    )
    _write_object(folder / f"{name}.inter.json", users)
    texts = ({column: row[column] for column in TEXT_COLUMNS} for row in dataset.items.to_pylist())
    _write_object(folder / f"{name}.item.json", zip(map(str, range(dataset.n_items)), texts, strict=True))
    lines = (f"{one}\t{number}\n" for number, one in enumerate(ids.to_pylist()))
    (folder / f"{name}.item2id").write_text("".join(lines), encoding="utf-8")


def _write_object(path: Path, pairs: Iterator[tuple[str, object]]) -> None:
    """A JSON object, one key a line."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("{")
        for number, (key, value) in enumerate(pairs):
            file.write(f"{',' if number else ''}\n{json.dumps(key)}: {json.dumps(value)}")
        file.write("\n}\n")


def write_recbole(folder: Path, name: str, dataset: Dataset) -> None:
    """NAME.inter (user_id, item_id, timestamp) and NAME.item (item_id and texts), with typed headers.

    Where times are unknown the position in the sequence stands for them. Within a text, tabs and line ends become
    blanks; a text that begins with a double quote gets single ones, since RecBole would take it for a quoted field.
    """
    users, items = _plain(dataset.user_ids, "user"), _plain(dataset.items["item_id"], "item")
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


def _write_tsv(path: Path, columns: dict[str, pa.Array]) -> None:
    """A header and one line a row; without quotes, which RecBole's files do not have."""
    rows = pa.table({name: column.cast(pa.string()) for name, column in columns.items()})
    with open(path, "w", encoding="utf-8") as file:
        file.write("\t".join(columns) + "\n")
        for batch in rows.to_batches(1 << 16):
            lines = pc.binary_join_element_wise(*batch.columns, "\t")
            file.write("\n".join([*lines.to_pylist(), ""]))


def _one_line(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts that fit a field of a file without quotes."""
    texts = pc.replace_substring_regex(pc.fill_null(texts, ""), r"[\t\r\n]+", " ")
    return pc.if_else(pc.starts_with(texts, '"'), pc.replace_substring(texts, '"', "'"), texts)


def _plain(ids: pa.ChunkedArray, one: str) -> pa.Array:
    """Ids, if they can stand in a file of tab-separated fields.

    Raises:
        UserError: names the first that cannot.
    """
    bad = pc.filter(ids, pc.match_substring_regex(ids, r'[\t\r\n"]|^\s*$'))
    if len(bad):
        raise UserError(
            f"{one} id {bad[0].as_py()!r} ({len(bad)} such ids): tabs, line ends, double quotes and blank ids have no "
            "place in the files to write. Prepare the data set anew with other ids."
        )
    return ids.combine_chunks()


if __name__ == "__main__":
    run(main, Config)
