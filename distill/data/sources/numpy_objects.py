"""Dictionaries in `.npy` files, without running what such a file could hold.

NumPy stores Python objects as a pickle, which names functions to call while it is read. Here only the few names that
arrays, numbers and plain collections consist of are known, and stand for classes of this file in place of NumPy's,
which trust their input; any other name ends the reading before anything is called. Before that, `check_opcodes` refuses
what such a dictionary does not need, such as buffers of any size.
"""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distill.runtime.errors import UserError

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "MEMOIZE", "BINPUT",
    "LONG_BINPUT", "BINGET", "LONG_BINGET", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST",
    "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "NONE", "NEWTRUE", "NEWFALSE", "BININT",
    "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip


class StoredType:
    """A `numpy.dtype` in a pickle; whole numbers and objects alone can be used."""

    def __init__(self, name: str = "", *_: object):
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def decode(self, data: bytes) -> list[int]:
        """Decode the bytes of whole numbers."""
        order = "<" if self.order == "|" else self.order
        dtype = np.dtype(order + self.name)
        if dtype.kind not in "iu":
            raise TypeError(f"numbers of type {dtype}, not whole ones")
        return np.frombuffer(data, dtype).tolist()


class StoredArray:
    """A `numpy.ndarray` in a pickle.

    Attributes:
        shape: its shape.
        values: all values in order.
    """

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, dtype, _, data = state
        self.values = data if isinstance(data, list) else dtype.decode(data)

    def content(self) -> Any:
        """Return a list for an array of one axis, the value for one of none, or the array itself."""
        if self.shape == () and len(self.values) == 1:
            return self.values[0]
        return self.values if self.shape == (len(self.values),) else self


def make_array(*_: object) -> StoredArray:
    """Stand for NumPy's function that makes an empty array, whose state follows in the pickle."""
    return StoredArray()


def make_number(dtype: StoredType, data: bytes) -> int:
    """Stand for NumPy's function that makes a number of its bytes."""
    (number,) = dtype.decode(data)
    return number


def make_default(*_: object) -> dict[Any, Any]:
    """Stand for a `defaultdict`; its default is not used."""
    return {}


STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): StoredArray,
    ("numpy", "dtype"): StoredType,
    ("collections", "defaultdict"): make_default,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "list"): list,
}
for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # of NumPy 1 and 2
    STAND_INS |= {(module, "_reconstruct"): make_array, (module, "scalar"): make_number}


def check_opcodes(data: bytes) -> None:
    """Refuse a pickle with other instructions than a dictionary of numbers needs, or a memory larger than the pickle.

    Raises:
        ValueError: as above, or it is cut off.
    """
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in OPCODES or (opcode.name == "LONG_BINPUT" and argument > len(data)):
            raise ValueError(f"the instruction {opcode.name}, which a dictionary of numbers does not need")


class PlainUnpickler(pickle.Unpickler):
    """Reads a pickle of arrays, numbers and plain collections alone.

    Args:
        stream: the pickle.
        path: of its file, for messages.
    """

    def __init__(self, stream: BinaryIO, path: Path):
        super().__init__(stream)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name of the pickle.

        Raises:
            UserError: nothing does.
        """
        if (module, name) not in STAND_INS:
            raise UserError(
                f"{self.path}: names {module}.{name}, which could run code: expected a dictionary of numbers alone. Do "
                "not trust this file."
            )
        return STAND_INS[module, name]


def read_dictionary(path: Path) -> dict[Any, Any]:
    """Read the dictionary of numbers and lists that `numpy.save` wrote; arrays of one axis in it become lists.

    Raises:
        UserError: the file holds something else, is cut off, or names code.
    """
    expected = f"{path}: expected a dictionary written by numpy.save"
    try:
        with path.open("rb") as stream:
            version = np.lib.format.read_magic(stream)
            if version not in HEADERS:
                raise UserError(f"{expected}, got a file of version {version}.")
            shape, _, dtype = HEADERS[version](stream)
            if shape != () or not dtype.hasobject:
                raise UserError(f"{expected}, got an array of shape {shape} and type {dtype}.")
            data = stream.read()
        check_opcodes(data)
        value = plain(PlainUnpickler(io.BytesIO(data), path).load())
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{expected}; it is cut off or damaged ({error}). Get the file again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{expected}, got a {type(value).__name__}.")
    return {key: plain(row) for key, row in value.items()}


def plain(value: Any) -> Any:
    """Turn an array into a list or a value, and leave all else as it is."""
    return value.content() if isinstance(value, StoredArray) else value
