"""Mutate valid inputs: bytes, lines, tokens, JSON trees, and columns of parquet files.

All choices come from one `random.Random`, so that an input is known by its seed; hypothesis can be that generator.
"""

import io
import json
import re
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .fuzz_contract import Files

TOKENS = (  # what readers have stumbled over, here and elsewhere
    *("", " ", "0", "-0", "-1", "1", "2", "-9", "00", "+1", "1.5", "1e3", "1_0", "0x1", "1e999", "-1e999", "1e-400"),
    *("nan", "NaN", "-nan", "inf", "Infinity", "-inf", ".nan", ".inf", "null", "None", "~", "true", "False"),
    *("255", "256", "65536", "2147483648", "4294967296", "9007199254740993", "9223372036854775808", "9" * 400),
    *("-9223372036854775809", "1000000000", "99999999999999", "1e18", "253402300800", "2024-13-45", "2024-05-31"),
    *("0001-01-01", "9999-12-31 23:59:59", "\x00", "\x1b[31m", "\ufeff", "😀"),
    *('"', '""', "'", "\\", "\\u0000", "\\ud800", "\r", "\r\n", "\u2028", "\u00a0", "\x1f", "\x85"),
    *("::", "|", "\t", ",", ";", "#", "%"),
    *("{", "}", "[", "]", "[]", "{}", "[[]]", "{{history}}", "{history}", "&a [*a]", "*a", "!!python/object:os.system"),
    *("<a_0>", "<a_-1>", "<a_999999>", "<z_1>", "../x", "/dev/null", "/", ".", "x" * 3000, "é" * 50),
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30, 0.5, -1.5, 1e308, float("nan")),
    *(float("inf"), float("-inf"), "", " ", "a", "0", "-1", "nan", "\x00", "\ud800", "x" * 3000, [], [None], [[]], {}),
    *([0], [0, 0], ["a", 1], {"": 1}, {"a": {"b": []}}, [[1], [2, 3]], [0] * 300),
)  # fmt: skip
SPLIT = re.compile(r"([\t,:|;=\s{}\[\]\"'<>_]+)")
BYTES = (b"\x00", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\x80", b"\xc3", b"\xed\xa0\x80", b"\n", b"\r", b"\x1a")
KINDS = (
    *(pa.string(), pa.large_string(), pa.float64(), pa.float32(), pa.int8(), pa.uint64(), pa.binary(), pa.null()),
    *(pa.dictionary(pa.int32(), pa.string()), pa.timestamp("us"), pa.large_list(pa.int64()), pa.bool_()),
)


def mutate(files: Files, random: Random, most: int = 3) -> Files:
    """Mutate an input at one to `most` places, most often in the same file."""
    files = dict(files)
    name = random.choice(sorted(files))
    for _ in range(random.randint(1, most)):
        if random.random() < 0.2:
            name = random.choice(sorted(files))
        files[name] = _mutate_file(name, files, random)
    return files


def _mutate_file(name: str, files: Files, random: Random) -> bytes:
    content = files[name]
    if random.random() < 0.03:
        return files[random.choice(sorted(files))]  # another file under this name
    ending = name.rpartition(".")[2]
    kinds: list[Callable[[bytes, Random], bytes]] = [mutate_bytes]
    if name == "call.json":  # values of a program, not a file
        kinds = [mutate_json]
    elif ending == "parquet":
        kinds += [mutate_parquet] * 6
    elif ending == "safetensors":
        kinds += [mutate_safetensors] * 2
    elif ending != "gguf":
        kinds += [mutate_lines] * 3 + [mutate_tokens] * 5
        if ending in ("json", "jsonl") or content.lstrip()[:1] in (b"{", b"["):
            kinds += [mutate_json] * 6
    return random.choice(kinds)(content, random)


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """Flip a bit, cut, delete, repeat or insert bytes."""
    start = random.randint(0, len(content))
    end = min(len(content), start + random.choice((1, 2, 8, 64, 1 << 20)))
    change = random.randint(0, 5)
    if change == 0 and start < len(content):
        return content[:start] + bytes([content[start] ^ (1 << random.randint(0, 7))]) + content[start + 1 :]
    if change == 1:
        return content[:start]
    if change == 2:
        return content[:start] + content[end:]
    if change == 3:
        return content[:end] + content[start:end][:4096] + content[end:]
    if change == 4:
        number = random.choice((0, 1, -1, 127, 255, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1))
        return content[:start] + struct.pack("<q", number)[: random.choice((1, 2, 4, 8))] + content[end:]
    return content[:start] + random.choice(BYTES) * random.choice((1, 1, 1, 500)) + content[start:]


def mutate_lines(content: bytes, random: Random) -> bytes:
    """Delete, repeat, swap, cut or join lines, or change their endings."""
    lines = content.split(b"\n")
    here, there = random.randrange(len(lines)), random.randrange(len(lines))
    change = random.randint(0, 6)
    if change == 0:
        del lines[here]
    elif change == 1:
        lines.insert(there, lines[here])
    elif change == 2:
        lines[here], lines[there] = lines[there], lines[here]
    elif change == 3:
        lines[here] = lines[here][: random.randint(0, len(lines[here]))]
    elif change == 4:
        lines.insert(here, random.choice((b"", b" ", b"\t", b"#", b"\x00", b"-" * 100)))
    elif change == 5:
        return content.replace(b"\n", random.choice((b"\r\n", b"\r", b"\n\n", b" ", b"\x0b")))
    else:
        lines = lines[:here]
    return b"\n".join(lines)


def mutate_tokens(content: bytes, random: Random) -> bytes:
    """Replace, repeat, delete or swap words and what stands between them."""
    parts = SPLIT.split(content.decode("utf-8", errors="surrogateescape"))
    here, there = random.randrange(len(parts)), random.randrange(len(parts))
    change = random.randint(0, 7)
    if change <= 3:
        parts[here] = random.choice(TOKENS)
    elif change == 4:
        parts[here] += random.choice(TOKENS)
    elif change == 5:
        parts[here] = parts[there]
    elif change == 6:
        parts[here] *= 2
    else:
        parts[here] = ""
    return "".join(parts).encode("utf-8", errors="surrogateescape")


def mutate_json(content: bytes, random: Random) -> bytes:
    """Replace, delete, repeat or wrap a value anywhere in a JSON document, or in one of its lines."""
    lines = [content]
    try:
        tree = json.loads(content)
        row = 0
    except ValueError:
        lines = content.split(b"\n")
        row = random.randrange(len(lines))
        try:
            tree = json.loads(lines[row])
        except ValueError:
            return mutate_tokens(content, random)
    holder = [tree]
    container, key = random.choice(list(_places(holder)))
    change = random.randint(0, 6)
    if change <= 2:
        container[key] = random.choice(VALUES)
    elif change == 3:
        container[key] = [container[key]]
    elif change == 4 and isinstance(container, dict):
        container[random.choice(TOKENS)] = container.pop(key)
    elif change == 5:
        other, place = random.choice(list(_places(holder)))
        container[key] = json.loads(json.dumps(other[place]))
    elif container is not holder:
        del container[key]
    lines[row] = json.dumps(holder[0], indent=random.choice((None, 1)) if len(lines) == 1 else None).encode()
    return b"\n".join(lines)


def _places(node: Any) -> Any:
    """Yield (container, key) of every value below a list or a dictionary."""
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


def mutate_parquet(content: bytes, random: Random) -> bytes:
    """Change rows, columns, types or single values of a table."""
    try:
        table = pq.read_table(pa.BufferReader(content))
        output = io.BytesIO()
        pq.write_table(_mutate_table(table, random), output)
        return output.getvalue()
    except (pa.ArrowException, OSError, TypeError, ValueError, OverflowError):
        return mutate_bytes(content, random)


def _mutate_table(table: pa.Table, random: Random) -> pa.Table:
    place = random.randrange(table.num_columns)
    name, column = table.column_names[place], table.column(place)
    change = random.randint(0, 8)
    if change <= 3 and len(table):  # a value; of a list perhaps one of its values
        values = column.to_pylist()
        row = random.randrange(len(values))
        if isinstance(values[row], list) and values[row] and random.random() < 0.6:
            values[row][random.randrange(len(values[row]))] = random.choice(VALUES)
        else:
            values[row] = random.choice((*VALUES, values[random.randrange(len(values))]))
        try:
            array = pa.array(values, column.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            array = pa.array(values)
        return table.set_column(place, name, array)
    if change == 4:
        return table.drop_columns([name])
    if change == 5:
        renamed = random.choice((*table.column_names, "", name.upper(), f"{name} "))
        names = table.column_names
        return table.rename_columns([*names[:place], renamed, *names[place + 1 :]])
    if change == 6:
        kind = random.choice(KINDS)
        return table.set_column(place, name, pa.nulls(len(table), kind) if kind == pa.null() else column.cast(kind))
    if change == 7:
        rows = sorted(random.sample(range(len(table)), random.randint(0, len(table))), key=lambda _: random.random())
        return table.take(pa.array(rows, pa.int64()))
    return pa.concat_tables([table, table.slice(random.randint(0, len(table)))])


def mutate_safetensors(content: bytes, random: Random) -> bytes:
    """Change the JSON header of a safetensors file, with or without its length."""
    length = int.from_bytes(content[:8], "little")
    header = mutate_json(content[8 : 8 + length], random)
    size = len(header) if random.random() < 0.9 else random.choice((0, 1, 2**31, 2**63))
    return struct.pack("<Q", size) + header + content[8 + length :]
