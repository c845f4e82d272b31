"""Read files with one JSON object a line, plain or gzipped, in blocks.

Arrow parses a block at once if every line of it is well formed. Other blocks are parsed line by line, so that malformed
lines can be named, counted and, up to a limit, left out. Python literals (single quotes, None), which the Amazon data
of 2014 hold, are accepted too. At most two blocks of text are in memory.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson

from distill.runtime.errors import UserError
from distill.runtime.logs import log, progress_bar

BLOCK = 1 << 24  # bytes of text parsed at once
PIECE = 1 << 20  # bytes read at once
NULL = re.compile(rb"null")


class MalformedError(Exception):
    """A malformed line; the message says what was expected."""


@dataclass
class BadLines:
    """Counts the malformed lines of a file.

    Attributes:
        path: the file.
        limit: malformed lines allowed.
        problems: (line, problem) of each malformed line.
    """

    path: Path
    limit: int
    problems: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, problem: str) -> None:
        """Count a malformed line.

        Raises:
            UserError: more lines than the limit.
        """
        self.problems.append((line, problem))
        if len(self.problems) > self.limit:
            first, what = self.problems[0]
            raise UserError(
                f"{self.path}:{first}: {what}. {len(self.problems)} malformed lines up to line {line}, {self.limit} "
                "are allowed. Get the file again, mend it, or leave out more: --max_bad_lines."
            )

    def report(self) -> None:
        """Log how many lines were left out and the numbers of the first ones."""
        if self.problems:
            lines = ", ".join(str(line) for line, _ in self.problems[:5])
            more = ", …" if len(self.problems) > 5 else ""
            log.info(f"{self.path}: left out {len(self.problems)} malformed lines ({lines}{more})")


def read_tables(
    path: Path,
    schema: pa.Schema,
    select: Callable[[pa.Table], pa.Table | None],
    to_row: Callable[[dict[str, Any]], dict[str, Any]],
    max_bad_lines: int,
    skip: Callable[[bytes], bool] = lambda line: False,
) -> Iterator[pa.Table]:
    """Read the file, block by block.

    Args:
        path: ends in .gz if it is gzipped.
        schema: fields to read; other fields are ignored, missing ones are null.
        select: a parsed block -> the columns to keep; None if a line lacks something, then the block is parsed by line.
        to_row: a line's object -> its fields of the schema; raises `MalformedError`.
        max_bad_lines: malformed lines that may be left out.
        skip: whether a line can be ignored, where a block is parsed by line.

    Raises:
        UserError: a cut-off file (says how far it could be read), too many malformed lines.
    """
    bad = BadLines(path, max_bad_lines)
    for line, block in _ahead(blocks(path)):
        kept = None
        try:
            if _has_null_line(block):
                raise pa.ArrowInvalid("null in place of an object")
            options = pajson.ReadOptions(block_size=max(PIECE, len(block) // 4))
            parsing = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
            parsed = pajson.read_json(pa.BufferReader(block), options, parsing)
            parsed.validate(full=True)  # the parser lets bytes pass that are not UTF-8
            kept = select(parsed)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass  # parsing by line below finds the line
        if kept is None:
            rows = list(_rows(block, line, to_row, skip, bad))
            kept = select(pa.Table.from_pylist(rows, schema))
        yield kept
    bad.report()


def _has_null_line(block: bytes) -> bool:
    """Tell whether a line begins with null: Arrow's parser crashes where a chunk of lines does."""
    for match in NULL.finditer(block):
        start = max(block.rfind(b"\n", 0, match.start()), block.rfind(b"\r", 0, match.start())) + 1
        if not block[start : match.start()].strip(b" \t\xef\xbb\xbf"):
            return True
    return False


def _rows(block: bytes, line: int, to_row: Callable, skip: Callable, bad: BadLines) -> Iterator[dict[str, Any]]:
    for number, text in zip(count(line), block.split(b"\n"), strict=False):
        if text.strip() and not skip(text):
            try:
                yield to_row(_load(text))
            except MalformedError as problem:
                bad.add(number, str(problem))


def _load(text: bytes) -> dict[str, Any]:
    try:
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = ast.literal_eval(text.decode().strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, dict):
        start = text[:60].decode(errors="replace")
        raise MalformedError(f"expected a JSON object on one line, got {start!r}")
    return value


def plain(value: Any) -> str:
    """Convert a text or a number to a string that UTF-8 can encode: JSON may hold lone surrogates.

    Raises:
        MalformedError: another value.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise MalformedError(f"expected a text, got {str(value)[:60]!r}")
    return str(value).encode(errors="replace").decode()


def identifier(value: Any, name: str) -> str:
    """Convert an id to a string: a text or a whole number.

    Args:
        value: as it stands in the file.
        name: of the field, for the message.

    Raises:
        MalformedError: another value, or a text that UTF-8 cannot encode: replaced letters would make two ids equal.
    """
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text.strip() or re.search("[\ud800-\udfff]", text):
        raise MalformedError(f"expected an id as {name}, got {ascii(value)[:60]}")
    return text


def blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Read blocks of whole lines, about `BLOCK` bytes each, as (number of the first line, text); shows a progress bar.

    Raises:
        UserError: cut off or damaged; the message counts the bytes and lines that could be read.
    """
    held: list[bytes] = []
    size, done, line = 0, 0, 1
    bar = progress_bar(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, leave=False)
    with open(path, "rb") as raw, bar:
        file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        while True:
            try:
                piece = file.read1(PIECE)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                lines = line - 1 + sum(part.count(b"\n") for part in held)
                raise UserError(
                    f"{path}: cut off or damaged ({error}) after {done:,} bytes and {lines:,} lines of text. "
                    "Get the file again."
                ) from None
            done, size = done + len(piece), size + len(piece)
            bar.update(raw.tell() - bar.n)
            end = piece.rfind(b"\n") + 1 if size >= BLOCK else 0
            if not piece or end:
                held.append(piece[:end])
                if block := b"".join(held):
                    yield line, block
                    line += block.count(b"\n")
                held, size = [piece[end:]], len(piece) - end
            else:
                held.append(piece)
            if not piece:
                return


def _ahead(items: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield the same items, reading the next in a thread meanwhile: unpacking and parsing share two cores."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
