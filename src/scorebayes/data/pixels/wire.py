"""What the two sides of the box tell each other: facts as JSON, then arrays as bytes. Neither runs what the other sends.

A message is the length of the JSON (four bytes), the JSON, and the bytes of the arrays that it describes. An array that
still lies in the image file is not sent: the JSON says where it lies.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

MOST_BYTES = 2 * 2**30  # of an array, and of the facts
_FEW_BYTES = 1 << 20  # sent in one piece with the facts, so that the other side wakes once

Write = Callable[[memoryview], int | None]
Fill = Callable[[memoryview], int | None]


def send(write: Write, facts: dict[str, Any], arrays: Sequence[NDArray] = ()) -> None:
    """Write a message. ``write`` writes some of the bytes it is given and returns how many."""
    inline = [
        None if isinstance(array, np.memmap) else np.ascontiguousarray(array).reshape(-1) for array in arrays
    ]
    described = [
        _place(array) if isinstance(array, np.memmap) else {"dtype": array.dtype.str, "shape": array.shape}
        for array in arrays
    ]
    head = json.dumps({**facts, "arrays": described}).encode()
    parts = [memoryview(struct.pack("<I", len(head)) + head)]
    parts += [array.data.cast("B") for array in inline if array is not None and array.size]
    if sum(map(len, parts)) <= _FEW_BYTES:
        parts = [memoryview(b"".join(parts))]
    for part in parts:
        while part:
            part = part[write(part) or 0 :]


def receive(fill: Fill, path: Path | None = None) -> tuple[dict[str, Any], list[NDArray]]:
    """Read a message. ``fill`` reads into what it is given and returns how many bytes came. ``path``: the file that arrays
    may lie in. EOFError where the other side has gone, ValueError where it says what makes no sense."""
    (length,) = struct.unpack("<I", _bytes(fill, 4))
    if length > MOST_BYTES:
        raise ValueError(length)
    facts = json.loads(_bytes(fill, length))
    arrays = [_from_file(path, of) if "start" in of else _inline(fill, of) for of in facts.pop("arrays")]
    return facts, arrays


def _bytes(fill: Fill, length: int) -> bytes:
    return _filled(fill, np.empty(length, np.uint8)).tobytes()


def _inline(fill: Fill, described: dict[str, Any]) -> NDArray:
    shape, dtype = _whole(described["shape"]), _numbers(described["dtype"])
    if math.prod(shape) * dtype.itemsize > MOST_BYTES:
        raise ValueError(shape)
    array = np.empty(shape, dtype)
    _filled(fill, array.reshape(-1).view(np.uint8))
    return array


def _filled(fill: Fill, array: NDArray) -> NDArray:
    rest = array.data
    while rest:
        n = fill(rest)
        if not n:
            raise EOFError
        rest = rest[n:]
    return array


def _place(array: np.memmap) -> dict[str, Any]:
    """Where the numbers of a part of a file lie: from which byte to which, the first number, and the steps between them."""
    whole = array
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    start, end = (bound - byte_bounds(whole)[0] + whole.offset for bound in byte_bounds(array))
    first = array.__array_interface__["data"][0] - byte_bounds(array)[0]
    return {
        "dtype": array.dtype.str,
        "shape": array.shape,
        "strides": array.strides,
        "start": start,
        "end": end,
        "first": first,
    }


def _from_file(path: Path | None, described: dict[str, Any]) -> NDArray:
    start, end = _whole([described["start"], described["end"]])
    if path is None or not 0 <= end - start <= MOST_BYTES:
        raise ValueError(described)
    raw = np.empty(end - start, np.uint8)
    with path.open("rb", buffering=0) as file:
        os.lseek(file.fileno(), start, os.SEEK_SET)
        _filled(file.readinto, raw)
    return np.ndarray(
        _whole(described["shape"]), _numbers(described["dtype"]), raw.data, described["first"], described["strides"]
    )  # fmt: skip


def _whole(numbers: Sequence[Any]) -> list[int]:
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(numbers)
    return list(numbers)


def _numbers(text: str) -> np.dtype:
    dtype = np.dtype(str(text))
    if dtype.kind not in "buif":
        raise ValueError(text)
    return dtype
