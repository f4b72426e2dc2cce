"""From stored words to the values they stand for (PS3.5, 8.1.1): where their bits lie, which others there are, the sign.

A value that doesn't fit Bits Stored must never lose its upper bits in silence: decoders mask them away, and a bright spot
comes out dark.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.pixels.dicom.frame import Words
from scorebayes.data.pixels.dicom.header import Header
from scorebayes.data.pixels.dicom.tags import Tags, named
from scorebayes.errors import DataError

_EXPORT = "Export it again, uncompressed and from the original."


def stored_values(tags: Tags, header: Header, found: Words) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Values of Bits Stored bits, and where there are none: pixels of the padding value, which may lie outside.

    DataError where values don't fit Bits Stored, or where a compressed stream and the header disagree on the sign of what
    is there.
    """
    bits, precision = header.bits, found.precision
    _require_same_sign(tags, header, found)
    # A stream of just the stored bits holds no others, wherever they lay before they were compressed.
    shift = header.high_bit + 1 - bits if precision > bits else 0
    width = max(precision, bits)
    if shift + bits > width:
        raise tags.wrong(
            "HighBit", f"is {header.high_bit}, but the pixels are compressed at {width} bits", _EXPORT
        )
    words = found.words.astype(np.int32) & (2**width - 1)
    values = (words >> shift) & (2**bits - 1)
    used = ((2**bits - 1) << shift) | (_overlay_bits(tags, header) if width > bits else 0)
    others = words & ~used
    if header.signed:
        negative = values >> (bits - 1)
        values -= negative << bits
        # Signed values repeat their sign in the bits above; without that, 2048 could be -2048 of 12 bits.
        others ^= negative * ((2**width - 1) & ~used & ~((1 << shift) - 1))
    outside = others != 0
    if outside.any():  # padding may lie there (C.7.5.1.1.2): it is no value of the image
        padding = tags.number("PixelPaddingValue")
        if padding is None or (words[outside] != int(padding) & (2**width - 1)).any():
            raise DataError(
                f"{tags.path} has values that do not fit its {bits} stored bits "
                f"({named('BitsStored')}, up to {named('HighBit')} {header.high_bit}).",
                "Correct the header if it is wrong, or leave the file out.",
            )
    return values, outside


def _require_same_sign(tags: Tags, header: Header, found: Words) -> None:
    """JPEG 2000 says in the stream whether values are signed, the others don't: their sign is known only at the stored
    depth. Where no value is touched by it, a contradiction does no harm."""
    if found.stream is None:
        return
    top_bit = found.words < 0 if found.stream.signed else found.words >= 2 ** (found.precision - 1)
    if not top_bit.any():
        return
    if found.stream.signed is None and header.signed and found.precision < header.bits:
        raise tags.wrong(
            "BitsStored", f"is {header.bits}, but the stream has {found.precision} bits: the sign is not known", _EXPORT
        )  # fmt: skip
    if found.stream.signed not in (None, header.signed):
        said = ("unsigned", "signed")
        raise tags.wrong(
            "PixelRepresentation",
            f"says that pixels are {said[header.signed]}, but the JPEG 2000 stream says {said[not header.signed]}",
            _EXPORT,
        )


def _overlay_bits(tags: Tags, header: Header) -> int:
    """Bits of the words that belong to overlays kept beside the pixels, as older files have them (C.9.2, retired)."""
    bits = 0
    for group in range(0x6000, 0x6020, 2):
        position, there = tags.dataset.get((group, 0x0102)), (group, 0x3000) in tags.dataset
        if position is None or there or not isinstance(position.value, int):
            continue
        if 0 <= position.value < header.allocated:
            bits |= 1 << position.value
    return bits
