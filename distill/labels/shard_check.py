"""Check the columns of a shard of labels: shapes, types and ranges, before anything is computed from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distill.labels.encodings import ENCODINGS
from distill.labels.schema import Columns

EXAMPLE = ("user", "position", "target")
TOP = "top"  # the only encoded column that holds numbers of codewords


def find_problem(columns: Columns, rows: int, index: dict[str, Any], wanted: Sequence[str] | None = None) -> str | None:
    """Describe why columns cannot be those of a shard; None if they can.

    Args:
        columns: as `read_shard` returns them.
        rows: of the shard.
        index: of the set, as `read_index` returns it.
        wanted: the columns that were asked for; None: all that a set has.
    """
    levels, codebook = index["levels"], index["codebook_size"]
    size = codebook * (levels if index["scope"] == "all" else 1)
    checks: dict[str, Callable[[np.ndarray], bool]] = {name: _numbers((rows,), 0) for name in EXAMPLE}
    checks["target_codes"] = _numbers((rows, levels), 0, codebook)
    checks["candidates"] = _numbers((rows, index["keep"]), -1)
    checks["candidate_scores"] = _floats((rows, index["keep"]))
    sample = ENCODINGS[index["encoding"]].encode(np.zeros((1, size), np.float32))
    for level in range(levels):
        for name, array in sample.items():
            shape = (rows, *array.shape[1:])
            kind, high = array.dtype.kind, size if name == TOP else 256
            checks[f"{name}_{level}"] = _floats(shape) if kind == "f" else _numbers(shape, 0, high, kind)
        if index.get("features"):
            size_of_states = index["features"] * len(index.get("feature_layers", [1]))
            checks[f"states_{level}"] = _numbers((rows, size_of_states), 0, 256, "u")
    for name, is_right in checks.items():
        if name not in columns:
            if wanted is None or name in wanted:
                return f"it has no column {name!r}"
        elif not is_right(columns[name]):
            array = columns[name]
            return f"column {name!r} holds {array.dtype} {list(array.shape)} or numbers out of range"
    return None


def _numbers(
    shape: tuple[int, ...], low: int, high: int | None = None, kind: str = "i"
) -> Callable[[np.ndarray], bool]:
    """Whole numbers of a shape, from `low` to below `high`, signed ("i") or not ("u")."""

    def is_right(array: np.ndarray) -> bool:
        if array.shape != shape or array.dtype.kind != kind:
            return False
        return array.min(initial=low) >= low and (high is None or array.max(initial=low) < high)

    return is_right


def _floats(shape: tuple[int, ...]) -> Callable[[np.ndarray], bool]:
    """Log-probabilities of a shape: no NaN and no +∞."""

    def is_right(array: np.ndarray) -> bool:
        return array.shape == shape and array.dtype.kind == "f" and bool((array < np.inf).all())

    return is_right
