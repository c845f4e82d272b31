"""Clean the texts of web shops: HTML to plain text."""

from __future__ import annotations

import html

import pyarrow as pa
import pyarrow.compute as pc

HIDDEN = r"(?is)<(?:script|style)\b.*?</(?:script|style)\s*>|<!--.*?-->"
TAG = r"(?s)</?[a-zA-Z!][^<>]*>"  # a letter must follow: "size < 3 and > 1" is no tag
ENTITY = r"&(?:#\d+|#[xX][0-9a-fA-F]+|\w+);"
SPACE = r"[\s\p{Z}]+"


def clean_html(texts: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
    """Remove tags, scripts and comments, decode entities, reduce white space to single spaces; null becomes empty.

    Shops escape twice: tags are removed again after decoding (`&lt;br&gt;`), and entities are decoded until none is
    left (`&amp;amp;`).
    """
    chunks = texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
    return pa.chunked_array([_clean(chunk) for chunk in chunks], pa.string())


def _clean(texts: pa.Array) -> pa.Array:
    texts = pc.fill_null(texts, "")
    if pc.any(pc.match_substring_regex(texts, "[<&]")).as_py():
        texts = pc.replace_substring_regex(pc.replace_substring_regex(texts, HIDDEN, " "), TAG, " ")
        texts = pc.replace_substring_regex(_unescape(texts), TAG, " ")
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, SPACE, " "))


def _unescape(texts: pa.Array) -> pa.Array:
    """Decode entities; only the texts that have some leave the array."""
    for _ in range(3):  # deeper nesting does not occur
        has = pc.match_substring_regex(texts, ENTITY)
        if not pc.any(has).as_py():
            break
        plain = [html.unescape(text) for text in texts.filter(has).to_pylist()]
        texts = pc.replace_with_mask(texts, has, pa.array(plain, pa.string()))
    return texts
