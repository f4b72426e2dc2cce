"""From stored values to grey in [0, 1], background dark: modality, window or table, polarity, padding.

Stored values have at most 16 bits, so that the whole way is worked out once for each value there can be, in float64, and
looked up: nothing is rounded on the way, and nothing can leave the range.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.pixels.dicom.header import Header
from scorebayes.data.pixels.dicom.tables import read_table
from scorebayes.data.pixels.dicom.tags import Tags, named, shown

Values = NDArray[np.float64]

_RESCALE = ("PixelValueTransformationSequence", "RescaleSlope", "RescaleIntercept")
_VOI = ("FrameVOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTSequence")
"""Macros of functional groups, and their tags."""


def grey_curve(tags: Tags, header: Header, window: bool = True) -> NDArray[np.float32]:
    """Grey of every stored value, from ``header.lowest`` to ``header.highest``."""
    stored = np.arange(header.lowest, header.highest + 1)
    values, low, high = _modality(tags, header, stored)
    if window:
        values, low, high = _voi(tags, header, values, low, high)
    grey = (values - low) / (high - low)
    if header.photometric == "MONOCHROME1":
        grey = 1 - grey
    grey[_padding(tags, header, stored)] = 0
    return grey.astype(np.float32)


def grey_bits(tags: Tags, header: Header) -> int | None:
    """The depth by which values are scaled to grey; None where a window or VOI table says what is black and white."""
    voi = tags.of_frame(*_VOI)
    if voi.items("VOILUTSequence") or voi.value("WindowWidth") is not None:
        return None
    items = tags.items("ModalityLUTSequence")
    if not items:
        return header.bits
    return read_table(items[0], header.syntax, header.signed).top.bit_length()


def _padding(tags: Tags, header: Header, stored: NDArray) -> NDArray[np.bool_]:
    """Where the detector saw nothing (C.7.5.1.1.2): one value, or a range. The bits count: 63536 is -2000 where pixels
    are signed."""
    ends = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = tags.value(keyword)
        if value is None:
            continue
        value = tags.whole(keyword, -(2**15), 2**16 - 1) & 0xFFFF
        ends.append(value - 2**16 if header.signed and value >= 2**15 else value)
        if keyword == "PixelPaddingRangeLimit" and len(ends) == 1:
            raise tags.wrong(keyword, f"is given, but {named('PixelPaddingValue')} is missing")
    if not ends:
        return np.zeros(stored.shape, np.bool_)
    return (stored >= min(ends)) & (stored <= max(ends))


def _modality(tags: Tags, header: Header, stored: NDArray) -> tuple[Values, float, float]:
    """Modality LUT or rescale (C.11.1), with the lowest and highest value that can come out."""
    if items := tags.items("ModalityLUTSequence"):
        table = read_table(items[0], header.syntax, header.signed)
        return table(stored).astype(np.float64), 0.0, float(table.top)
    values = stored.astype(np.float64)
    place = tags.of_frame(*_RESCALE)
    slope, intercept = place.number("RescaleSlope"), place.number("RescaleIntercept")
    # Programs differ on what one of them alone means; where it changes nothing, it doesn't matter.
    if intercept is None and slope not in (None, 1):
        raise place.wrong("RescaleIntercept", f"is missing, but there is a {named('RescaleSlope')}")
    if slope is None and intercept not in (None, 0):
        raise place.wrong("RescaleSlope", f"is missing, but there is a {named('RescaleIntercept')}")
    if slope == 0:
        raise place.wrong("RescaleSlope", "is 0, which makes all pixels equal")
    values = values * (1.0 if slope is None else slope) + (intercept or 0.0)
    low, high = sorted((float(values[0]), float(values[-1])))
    if not np.isfinite([low, high]).all() or low == high:
        raise place.wrong(
            "RescaleSlope", f"is {shown(slope)}: values cannot be told apart, or are not finite"
        )
    return values, low, high


def _voi(
    tags: Tags, header: Header, values: Values, low: float, high: float
) -> tuple[Values, float, float]:  # fmt: skip
    """VOI LUT, else the first window (C.11.2), else the values as they are."""
    place = tags.of_frame(*_VOI)
    if items := place.items("VOILUTSequence"):
        table = read_table(items[0], header.syntax, signed=low < 0)
        return table(values).astype(np.float64), 0.0, float(table.top)
    center, width = place.number("WindowCenter", several=True), place.number("WindowWidth", several=True)
    if center is None and width is None:
        return values, low, high
    if center is None or width is None:
        missing, there = (
            ("WindowCenter", "WindowWidth") if center is None else ("WindowWidth", "WindowCenter")
        )
        raise place.wrong(missing, f"is missing, but there is a {named(there)}")
    function = place.word("VOILUTFunction") or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise place.wrong("VOILUTFunction", f"is {shown(function)}, expected LINEAR, LINEAR_EXACT or SIGMOID")
    if width < 1 if function == "LINEAR" else width <= 0:
        raise place.wrong("WindowWidth", f"is {width:g}, which is not allowed")
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - center) / width)), 0.0, 1.0
    if function == "LINEAR":  # C.11.2.1.2.1: the window spans width - 1 steps around center - 0.5
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float64), 0.0, 1.0
    return np.clip((values - center) / width + 0.5, 0, 1), 0.0, 1.0
