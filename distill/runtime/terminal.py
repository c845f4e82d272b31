"""Text of others on terminals, such as item titles and folder names: control characters are shown, not obeyed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

# control characters but line break and tab, marks that reverse the direction of writing, halves of surrogate pairs
NOT_PRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: Any) -> str:
    r"""Replace control characters by their escapes, such as \x1b; line breaks and tabs stay."""
    return NOT_PRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def cell(text: Any, style: str = "") -> Text:
    """Build a cell of a rich table: without markup, emoji codes and control characters, on one line."""
    from rich.text import Text  # late, so that `--help` is fast

    return Text(printable(text).replace("\n", "\\n"), style=style)
