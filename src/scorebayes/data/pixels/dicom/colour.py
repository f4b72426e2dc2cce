"""From stored samples to RGB in [0, 1]: colour spaces (C.7.6.3.1.2) and palettes (C.7.6.3.1.5 and 6, C.7.9)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels import apply_color_lut, convert_color_space

from scorebayes.data.pixels.dicom.frame import Words
from scorebayes.data.pixels.dicom.header import YBR, Header
from scorebayes.data.pixels.dicom.tables import read_descriptor, read_table
from scorebayes.data.pixels.dicom.tags import Tags, named
from scorebayes.errors import DataError

_CHANNELS = ("Red", "Green", "Blue")


def rgb(
    tags: Tags, header: Header, samples: NDArray[np.int32], found: Words
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Samples [H, W, 3] of the file's colour space -> RGB [H, W, 3], and the share of white of each number [n]."""
    if header.signed:
        raise tags.wrong("PixelRepresentation", "says that pixels are signed, which colours cannot be")
    stream = found.stream
    # What a JPEG stream says of its own colours is what every viewer follows.
    in_ybr = stream.colour == "YBR" if stream is not None and stream.colour else header.photometric in YBR
    if in_ybr:
        if header.bits != 8:
            raise tags.wrong(
                "BitsStored", f"is {header.bits}, but {header.photometric} is read at 8 bits only", "Export it as RGB."
            )  # fmt: skip
        samples = convert_color_space(samples.astype(np.uint8), "YBR_FULL", "RGB").astype(np.int32)
    white = np.float32(2**header.bits - 1)
    return samples, (np.arange(2**header.bits, dtype=np.float32) / white).astype(np.float32)


def palette(tags: Tags, header: Header) -> NDArray[np.float32]:
    """RGB [n, 3] in [0, 1] of every value, from ``header.lowest`` to ``header.highest``."""
    stored = np.arange(header.lowest, header.highest + 1)
    if "SegmentedRedPaletteColorLookupTableData" in tags.dataset:
        colours, bits = _segmented(tags, header, stored)
    else:
        tables = [
            read_table(
                tags, header.syntax, header.signed,
                f"{channel}PaletteColorLookupTableDescriptor", f"{channel}PaletteColorLookupTableData",
            )
            for channel in _CHANNELS
        ]  # fmt: skip
        colours, bits = np.stack([table(stored) for table in tables], -1), max(table.bits for table in tables)
    # Many write entries of 8 bits and say 16.
    top = 255 if bits <= 8 or int(colours.max()) <= 255 else 2**bits - 1
    return (colours / top).astype(np.float32)


def _segmented(tags: Tags, header: Header, stored: NDArray) -> tuple[NDArray, int]:
    """Tables written as runs and slopes (C.7.9.2)."""
    descriptors = {
        read_descriptor(tags, header.signed, f"{channel}PaletteColorLookupTableDescriptor") for channel in _CHANNELS
    }  # fmt: skip
    try:
        colours = apply_color_lut(stored, tags.dataset)[..., :3]
        (_, _, bits) = descriptors.pop()
        if not descriptors and colours.shape[-1] == 3:
            return colours, bits
    except Exception:  # the library raises anything on damaged input
        pass
    raise DataError(
        f"{tags.path}: the colours of {named('SegmentedRedPaletteColorLookupTableData')} cannot be worked out.",
        "Export it as RGB.",
    )
