"""LC-Rec's files: `NAME.inter.json` (user -> item numbers in time order), and beside it, each optional, `NAME.item2id`
(item id, number) and `NAME.item.json` (number -> title, description, brand, categories).

Item numbers are kept as they are, since `NAME.index.json` names items by them.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from distill.data.dataset import TEXT_COLUMNS
from distill.data.sources.base import Options, Source, check_texts, find_file
from distill.data.sources.numbering import check_ids
from distill.data.sources.text_table import TextTable, dense_catalogue
from distill.runtime.errors import UserError

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
LARGEST = 2**63
SPARSE_FROM = 1_000_000  # items without a catalogue; more need a hundredth as many interactions
ENDING = re.compile(r"\.(inter\.json|item\.json|item2id)$")


def files(folder: Path, options: Options) -> list[Path]:
    """List the files that `read` would read.

    Raises:
        UserError: no folder, no interactions, or several data sets in one folder.
    """
    paths = [find_file(folder, "*.inter.json")]
    paths += [find_file(folder, pattern, needed=False) for pattern in ("*.item2id", "*.item.json")]
    return [path for path in paths if path]


def read(folder: Path, options: Options) -> Source:
    """Read a folder.

    Raises:
        UserError: as `files`; cut-off JSON, values other than lists of numbers, duplicates, unknown items, items
            without text.
    """
    by_ending = {ENDING.search(path.name).group(): path for path in files(folder, options)}
    inter = by_ending[".inter.json"]
    users = load_object(inter)
    names = pa.array(users, pa.string())
    check_ids(names, "user", lambda row: _where(inter, list(users)[row]), unique=False)
    values, lengths = _flatten(users, inter)
    texts = load_object(by_ending[".item.json"]) if ".item.json" in by_ending else {}
    if ".item2id" in by_ending:
        catalogue = by_ending[".item2id"]
        ids = dense_catalogue(TextTable.read(catalogue, names=("item", "number")))
    else:
        catalogue = by_ending.get(".item.json", inter)
        count = len(texts) or int(values.max(initial=-1)) + 1
        if not texts:
            check_gaps(inter, count, len(values), "NAME.item2id or NAME.item.json")
        ids = pa.array([str(number) for number in range(count)], pa.string())
    outside = np.flatnonzero((values < 0) | (values >= len(ids)))
    if len(outside):
        user = list(users)[int(np.searchsorted(np.cumsum(lengths), outside[0], side="right"))]
        raise UserError(
            f"{_where(inter, user)}: user {user!r} names the unknown item {values[outside[0]]}: expected one of the "
            f"{len(ids)} items 0 to {len(ids) - 1} of {catalogue} ({len(outside)} such interactions). "
            "Add the items or remove the interactions."
        )
    items = {"item_id": ids}
    if ".item.json" in by_ending:
        items |= read_texts(by_ending[".item.json"], texts, ids, options)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Source(pa.table(items), names, values, offsets, origin=str(inter))


def check_gaps(path: Path, n_items: int, interactions: int, catalogue: str) -> None:
    """Refuse item numbers without a catalogue that are far larger than the interactions are many.

    Raises:
        UserError: names the files that could be the catalogue.
    """
    if n_items > max(SPARSE_FROM, 100 * interactions):
        raise UserError(
            f"{path} names item {n_items - 1:,}, but has only {interactions:,} interactions: expected items numbered "
            f"from 0 without such gaps, or {catalogue} beside it."
        )


def load_object(path: Path) -> dict[str, Any]:
    """Load a JSON object; repeated keys are an error."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            seen: set[str] = set()
            key = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise UserError(f"{_where(path, key, last=True)}: duplicate key {key!r}. Remove one of the two.")
        return result

    try:
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text, object_pairs_hook=unique)
        if SURROGATE.search(text):  # half of an emoji is valid in JSON, but no text
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: cut off or no JSON ({error.msg}, column {error.colno}). Get the file again."
        ) from None
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise UserError(f"{path}: a text holds {half}, half of a surrogate pair. Mend it.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text ({error.reason} at byte {error.start}).") from None
    except (RecursionError, ValueError) as error:  # a number of thousands of digits
        raise UserError(f"{path}: cannot be read as JSON ({error}).") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object {{...}} at the top, got a {type(value).__name__}.")
    return value


def _flatten(users: dict[str, Any], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate the item numbers of all users [n] and count them [users]."""
    for user, row in users.items():
        if not isinstance(row, list) or not all(type(number) is int for number in row):
            raise UserError(
                f"{_where(path, user)}: expected a list of item numbers for user {user!r}, got {str(row)[:60]}."
            )
        if not all(-LARGEST <= number < LARGEST for number in row):
            raise UserError(f"{_where(path, user)}: user {user!r} names an item number of more than 63 bits.")
    values = np.fromiter(itertools.chain.from_iterable(users.values()), dtype=np.int64)
    return values, np.array([len(row) for row in users.values()], dtype=np.int64)


def read_texts(path: Path, texts: dict[str, Any], ids: pa.Array, options: Options) -> dict[str, pa.Array]:
    """Read the text columns in the order of `ids`; texts of other items are left out."""
    rows = [texts.get(str(number), {}) for number in range(len(ids))]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(
                f"{_where(path, str(number))}: expected an object with title, description, … for item '{number}', "
                f"got {str(row)[:60]}."
            )
    columns: dict[str, pa.Array] = {}
    for name in TEXT_COLUMNS:
        try:
            columns[name] = pa.array([_text(row.get(name)) for row in rows], pa.string())
        except TypeError:
            number = next(number for number, row in enumerate(rows) if not _is_text(row.get(name)))
            raise UserError(
                f"{_where(path, str(number))}: expected a text, or a list of texts, as {name} of item '{number}', got "
                f"{str(rows[number][name])[:60]}. Mend it."
            ) from None
    table = pa.table({"item_id": ids, **columns})
    check_texts(table, lambda item: _where(path, str(item)), options.empty_text)
    return columns


def _text(value: Any) -> str:
    """Join lists of strings, which some versions of these files hold; raises TypeError where it is no text."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(_text(part) for part in value)
    if isinstance(value, bool | dict):
        raise TypeError(value)
    return str(value).strip()


def _is_text(value: Any) -> bool:
    try:
        return bool(_text(value)) or True
    except TypeError:
        return False


def _where(path: Path, key: str, last: bool = False) -> str:
    """Name file and line of a key, as `path:line`; slow, for messages only."""
    text = path.read_text(encoding="utf-8")
    starts = [match.start() for match in re.finditer(re.escape(json.dumps(key)) + r"\s*:", text)]
    return f"{path}:{text.count(chr(10), 0, starts[-1 if last else 0]) + 1}" if starts else str(path)
