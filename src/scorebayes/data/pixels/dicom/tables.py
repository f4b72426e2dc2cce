"""Look-up tables (C.11.1.1, C.11.2.1.1, C.7.6.3.1.5 and 6), with the ways in which files write them."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import uid

from scorebayes.data.pixels.dicom.tags import Tags, shown


@dataclass(frozen=True)
class Table:
    """``first`` is the value that the first entry is for; ``bits`` is the depth the entries are meant for."""

    entries: NDArray[np.uint16]
    first: int
    bits: int

    def __call__(self, values: NDArray) -> NDArray[np.uint16]:
        """The entries of values; those before the first or after the last get the entry at that end."""
        index = np.rint(values).astype(np.int64) - self.first
        return self.entries[np.clip(index, 0, len(self.entries) - 1)]

    @property
    def top(self) -> int:
        """The highest number of the bits that the entries need, as Bits Stored says it of pixels: a table of 16 bits whose
        entries end at 1023 gives 0 to 1023."""
        return 2 ** min(self.bits, max(1, int(self.entries.max()).bit_length())) - 1


def read_table(
    tags: Tags, syntax: uid.UID, signed: bool, descriptor: str = "LUTDescriptor", data: str = "LUTData"
) -> Table:  # fmt: skip
    """``signed``: whether the values that are looked up can be negative. DataError that names the tag."""
    length, first, bits = read_descriptor(tags, signed, descriptor)
    entries = _entries(tags, syntax, data, length, bits)
    if int(entries.max()) >= 2**bits:
        raise tags.wrong(
            descriptor, f"says entries of {bits} bits, but there are entries up to {entries.max()}"
        )
    return Table(entries, first, bits)


def read_descriptor(tags: Tags, signed: bool, descriptor: str) -> tuple[int, int, int]:
    """Number of entries, value of the first, bits of an entry."""
    value = tags.value(descriptor)
    if value is None:
        raise tags.wrong(descriptor, "is missing")
    try:
        length, first, bits = value
        good = all(isinstance(part, int) for part in value) and 8 <= bits <= 16
    except (TypeError, ValueError):
        good = False
    if not good:
        raise tags.wrong(
            descriptor, f"is {shown(value)}, expected three whole numbers, the third from 8 to 16"
        )
    length = length % 65536 or 65536  # 0 stands for 65536, which 16 bits can't hold
    if signed and first >= 32768:  # written as unsigned, whatever the sign
        first -= 65536
    return length, first, bits


def _entries(tags: Tags, syntax: uid.UID, data: str, length: int, bits: int) -> NDArray[np.uint16]:
    """Entries come as numbers (US, SS), or as bytes (OW): words, or at 8 bits also packed two to a word."""
    value = tags.value(data)
    if value is None:
        raise tags.wrong(data, "is missing")
    big = syntax == uid.ExplicitVRBigEndian
    if isinstance(value, bytes):
        words = np.frombuffer(value[: len(value) // 2 * 2], ">u2" if big else "<u2")
    else:
        try:
            words = np.atleast_1d(np.asarray(value, dtype=np.int64)) & 0xFFFF
        except (TypeError, ValueError, OverflowError):
            raise tags.wrong(data, "is not a list of numbers") from None
        if words.ndim != 1:
            raise tags.wrong(data, "is not a list of numbers")
    words = words.astype(np.uint16)
    if len(words) == length:
        return words
    packed = (words if sys.byteorder == "little" else words.byteswap()).view(np.uint8)
    if bits == 8 and len(words) == (length + 1) // 2:
        return packed[:length].astype(np.uint16)
    raise tags.wrong(data, f"has {len(words)} entries, but its descriptor says {length}")
