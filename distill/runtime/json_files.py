"""Reading JSON files of artifacts with one clear message where they are damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.runtime.errors import UserError

NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "{…}", list: "[…]"}


def read_object(path: Path, fields: Mapping[str, type] | None = None, remedy: str = "") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        fields: fields that it must have, and their types; a float field may hold a whole number.
        remedy: ends the messages: what to do.

    Raises:
        UserError: missing, unreadable, no object, with a key twice, or without a field of its type.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except FileNotFoundError:
        raise UserError(f"Missing file {path}. {remedy}".rstrip()) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). {remedy}".rstrip()) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not readable JSON ({error}). {remedy}".rstrip()) from None
    problem = object_problem(value, fields or {})
    if problem:
        raise UserError(f"{path} is damaged: {problem}. {remedy}".rstrip())
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return values


def object_problem(value: Any, fields: Mapping[str, type]) -> str | None:
    """Describe why a value is not an object with these fields; None if it is; arguments as `read_object`."""
    if not isinstance(value, dict):
        return f"expected an object {{...}}, got {str(value)[:60]}"
    for name, kind in fields.items():
        if name not in value:
            return f"it has no {name!r}"
        field = value[name]
        is_number = isinstance(field, int | float) and not isinstance(field, bool)
        fits = is_number and isinstance(field, int | kind) if kind in (int, float) else isinstance(field, kind)
        if not fits:
            return f"expected {NAMES[kind]} as {name!r}, got {str(field)[:60]}"
    return None
