"""Read `index.json` of a set of labels, and check that it can be one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.labels.encodings import ENCODINGS
from distill.labels.schema import INDEX, INDEX_SCHEMA
from distill.runtime.errors import UserError
from distill.runtime.json_files import object_problem, read_object
from distill.semantic_ids.ids import LEVEL_NAMES, MAX_CODEBOOK

FIELDS = {"levels": int, "codebook_size": int, "scope": str, "encoding": str, "keep": int, "rows": int, "shards": list}
SHARD_FIELDS = {"file": str, "rows": int, "sha256": str}
LARGEST = {"levels": len(LEVEL_NAMES), "codebook_size": MAX_CODEBOOK, "keep": 1_000_000}
MOST_FEATURES = 65_536
WORDS = {"scope": ("level", "all"), "encoding": tuple(ENCODINGS), "split": ("train", "valid", "test")}


def read_index(folder: Path, remedy: str = "") -> dict[str, Any]:
    """Read the index of a folder of labels.

    Args:
        folder: of the set.
        remedy: ends the messages: what to do.

    Raises:
        UserError: missing, damaged, of another schema, or without shards.
    """
    path = Path(folder) / INDEX
    index = read_object(path, remedy=remedy)
    if index.get("schema") != INDEX_SCHEMA:
        raise UserError(
            f"{path} has schema {index.get('schema')}, this version reads {INDEX_SCHEMA}. {remedy}".rstrip()
        )
    if index.get("shards") == []:
        raise UserError(f"{folder}/data holds no parquet shards. {remedy}".rstrip())
    problem = object_problem(index, FIELDS) or _find_problem(index)
    if problem:
        raise UserError(f"{path} is damaged: {problem}. {remedy}".rstrip())
    return index


def _find_problem(index: dict[str, Any]) -> str | None:
    """Describe what an index holds that no export writes; None if nothing."""
    for name, largest in LARGEST.items():
        if not 1 <= index[name] <= largest:
            return f"{name} is {index[name]}, expected 1 to {largest}"
    features = index.get("features", 1)
    if type(features) is not int or not 1 <= features <= MOST_FEATURES:
        return f"features is {str(features)[:60]}, expected 1 to {MOST_FEATURES}"
    layers = index.get("feature_layers", [1])
    if not isinstance(layers, list) or not layers or any(type(layer) is not int for layer in layers):
        return f"feature_layers is {str(layers)[:60]}, expected numbers of layers"
    if layers[0] < 1 or layers != sorted(set(layers)) or len(layers) * features > MOST_FEATURES:
        return f"feature_layers is {str(layers)[:60]}, expected ascending numbers from 1"
    for name, words in WORDS.items():
        if name in index and index[name] not in words:
            return f"{name} is {index[name]!r}, expected {' or '.join(words)}"
    if not isinstance(index.get("labeller", {}), dict):
        return f"expected an object as 'labeller', got {str(index['labeller'])[:60]}"
    for number, shard in enumerate(index["shards"]):
        problem = object_problem(shard, SHARD_FIELDS)
        if problem:
            return f"shard {number}: {problem}"
        if shard["rows"] < 1 or Path(shard["file"]).name != shard["file"]:
            return f"shard {number}: expected the name of a file and its rows, got {str(shard)[:80]}"
    rows = sum(shard["rows"] for shard in index["shards"])
    if rows != index["rows"] or len({shard["file"] for shard in index["shards"]}) < len(index["shards"]):
        return f"its shards have {rows} rows, expected {index['rows']}, each shard once"
    return None
