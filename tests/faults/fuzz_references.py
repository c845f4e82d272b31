"""Slow, plain readings of the raw formats, written from their definitions: what a reader accepts must be the same.

Each reads a folder and returns a `Reading`. It may fail in any way where the input is malformed; what it cannot read, a
reader must not accept.
"""

import ast
import csv
import datetime
import gzip
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq


class Reading(NamedTuple):
    """Interactions (user, item, seconds or None) in the file's order, and the titles of the items, if there are any."""

    interactions: list[tuple[str, str, float | None]]
    titles: dict[str, str] | None = None


def by_user(reading: Reading, shortest: int) -> dict[str, list[tuple[str, int | None]]]:
    """Sort each user's interactions by time, and leave out users with fewer than `shortest`."""
    users: dict[str, list[tuple[str, float | None]]] = {}
    for user, item, time in reading.interactions:
        assert user.strip() and item.strip(), "a blank id"
        assert time is None or math.isfinite(time), f"time {time}"
        users.setdefault(user, []).append((item, time))
    return {
        user: [(item, None if time is None else int(time)) for item, time in sorted(row, key=lambda pair: pair[1] or 0)]
        for user, row in users.items()
        if len(row) >= shortest
    }


def seconds(value: Any) -> float:
    """Read a time: a number, a date, or text of either; dates without a zone are UTC."""
    if isinstance(value, str):
        if re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", value):
            return float(value)
        value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if isinstance(value, datetime.datetime):
        return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
    assert not isinstance(value, bool), "a truth value as a time"
    return float(value)


def table(folder: Path) -> Reading:
    """Read interactions.* and items.*, csv or parquet."""
    rows = _rows(next(folder.glob("interactions.*")))
    titles = {_text(row["item_id"]): row.get("title") or "" for row in _rows(next(folder.glob("items.*")))}
    return Reading([(_text(row["user_id"]), _text(row["item_id"]), seconds(row["timestamp"])) for row in rows], titles)


def recbole_plain(folder: Path) -> Reading:
    """Read N.inter and N.item."""
    rows = _tsv(folder / "N.inter")
    titles = {row["item_id"]: row.get("title", "") for row in _tsv(folder / "N.item")}
    times = ((row, seconds(row["timestamp"]) if "timestamp" in row else None) for row in rows)
    return Reading([(row["user_id"], row["item_id"], time) for row, time in times], titles)


def recbole_split(folder: Path) -> Reading:
    """Read N.test.inter and N.item2index; the text is not compared."""
    numbers = [line.split("\t") for line in _lines(folder / "N.item2index") if line]
    ids = {number: item for item, number in numbers}
    assert len(ids) == len(numbers)
    rows = _tsv(folder / "N.test.inter")
    return Reading(
        [
            (row["user_id"], ids[number], None)
            for row in rows
            for number in [*row["item_id_list"].split(), row["item_id"].strip()]
        ]
    )


def lcrec(folder: Path) -> Reading:
    """Read N.inter.json, N.item2id and N.item.json."""
    pairs = [line.split("\t") for line in _lines(folder / "N.item2id") if line]
    ids = {int(number): item for item, number in pairs}
    texts = _object(folder / "N.item.json")
    users = _object(folder / "N.inter.json")
    interactions = []
    for user, row in users.items():
        assert isinstance(row, list) and all(type(number) is int for number in row)
        interactions += [(user, ids[number], None) for number in row]
    titles = {ids[int(number)]: text.get("title") for number, text in texts.items() if number in map(str, ids)}
    return Reading(interactions, {item: title.strip() for item, title in titles.items() if isinstance(title, str)})


def movielens(folder: Path) -> Reading:
    """Read u.data, ratings.dat or ratings.csv, with their films."""
    if (folder / "ratings.csv").is_file():
        rows = [(row["userId"], row["movieId"], row["timestamp"]) for row in _rows(folder / "ratings.csv")]
        titles = {row["movieId"]: row["title"] for row in _rows(folder / "movies.csv")}
    else:
        name, delimiter = ("u.data", "\t") if (folder / "u.data").is_file() else ("ratings.dat", "::")
        films, between = ("u.item", "|") if name == "u.data" else ("movies.dat", "::")
        fields = [line.split(delimiter) for line in _lines(folder / name) if line]
        assert all(len(line) == 4 and float(line[2]) == float(line[2]) for line in fields)
        rows = [(user, item, time) for user, item, _, time in fields]
        titles = {line.split(between)[0]: line.split(between)[1] for line in _lines(folder / films) if line}
    return Reading([(user, item, seconds(time)) for user, item, time in rows], titles)


def amazon(folder: Path) -> Reading:
    """Read reviews of any year, JSON lines or csv."""
    path = next(path for path in folder.iterdir() if not path.name.startswith("meta_"))
    interactions = []
    if path.suffix == ".csv":
        for row in _rows(path):
            float(row["rating"])
            interactions.append((row["user_id"], row["parent_asin"], seconds(row["timestamp"]) / 1000))
        return Reading(interactions)
    for row in _objects(path):
        user = next(value for name in ("user_id", "reviewerID") if (value := row.get(name)) not in (None, ""))
        item = next(value for name in ("parent_asin", "asin") if (value := row.get(name)) not in (None, ""))
        if row.get("unixReviewTime") not in (None, ""):
            time = seconds(row["unixReviewTime"])
        else:
            time = int(seconds(row["timestamp"])) / 1000
        interactions.append((_text(user), _text(item), time))
    return Reading(interactions)


def _lines(path: Path) -> list[str]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        old = path.name in ("u.data", "u.item", "ratings.dat", "movies.dat")
        # of other files, columns that are not read may be anything
        text = content.decode("latin-1") if old else content.decode("utf-8-sig", errors="replace")
    return re.split(r"\r\n|\n|\r", text)


def _tsv(path: Path) -> Iterator[dict[str, str]]:
    """Read tab-separated fields without quotes, under a header like `user_id:token`."""
    header, *lines = _lines(path)
    names = [name.strip().split(":")[0] for name in header.split("\t")]
    assert len(set(names)) == len(names) and "\ufffd" not in "".join(names)
    for line in lines:
        if line:
            yield dict(zip(names, line.split("\t"), strict=True))


def _rows(path: Path) -> list[dict[str, Any]]:
    """Read a csv or parquet table."""
    if path.suffix == ".parquet":
        contents = pq.ParquetFile(path).read()
        assert len(set(contents.column_names)) == contents.num_columns, "two columns of one name"
        return contents.to_pylist()
    text = path.read_bytes().decode("utf-8-sig", errors="replace")  # columns that are not read may be anything
    rows = list(csv.reader(io.StringIO(text, newline="")))
    names = [name.strip() for name in rows[0]]
    assert len(set(names)) == len(names)
    return [dict(zip(names, row, strict=True)) for row in rows[1:] if row]


def _text(value: Any) -> str:
    """Write an id of a parquet file as text, as arrow does."""
    if isinstance(value, str):
        return value
    assert isinstance(value, int | float | datetime.date) and value == value and not isinstance(value, bool), "no id"
    return str(value) if isinstance(value, int) else pa.array([value]).cast(pa.string())[0].as_py()


def _object(path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), "a key twice"
        return dict(pairs)

    result = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    assert isinstance(result, dict)
    return result


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """Read JSON objects one after the other, with any line ends between or within them; or a literal of 2014 a line."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    text = content.decode("utf-8-sig", errors="replace").strip()  # fields that are not read may be anything
    rows = []
    try:
        while text:
            row, end = json.JSONDecoder().raw_decode(text)
            rows.append(row)
            text = text[end:].lstrip()
    except ValueError:
        lines = [line.decode(errors="replace").strip() for line in content.split(b"\n")]
        rows = [_json_or_literal(line) for line in lines if line]
    assert all(isinstance(row, dict) for row in rows)
    yield from rows


def _json_or_literal(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return ast.literal_eval(line)
