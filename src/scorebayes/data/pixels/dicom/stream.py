"""What a compressed stream (JPEG, JPEG-LS, JPEG 2000) says of itself, and its words as it stores them.

The header of a DICOM file may say something else; nothing is masked, shifted or converted here, so that a contradiction can
be noticed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import imagecodecs
from numpy.typing import NDArray

_J2K = b"\xff\x4f\xff\x51"  # start of codestream, size
_JP2 = b"\0\0\0\x0cjP  "  # a JPEG 2000 file, which has the stream in a box: not DICOM, but met
_JPEG = b"\xff\xd8"
SIGNATURES = (_J2K, _JP2, _JPEG)


@dataclass(frozen=True)
class Stream:
    """``precision`` in bits; ``signed`` is None where the kind of stream can't say; ``colour`` is "RGB", "YBR",
    "transformed" (JPEG 2000: the decoder gives RGB) or "" where the stream doesn't say. ``lossy``: of JPEG only."""

    name: str
    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool | None = None
    colour: str = ""
    lossy: bool = False


def stream_facts(frame: bytes) -> Stream | None:
    """None where the stream is of no known kind, or cut off before it says enough."""
    try:
        if frame.startswith(_JPEG):
            return _jpeg_facts(frame)
        start = _codestream(frame)
        return None if start < 0 else _jpeg_2000_facts(frame[start:])
    except (struct.error, IndexError):
        return None


def decode(frame: bytes, stream: Stream) -> NDArray:
    """[H, W] or [H, W, samples]: unsigned words, signed where the stream is. Raises whatever the decoder raises."""
    if stream.name == "JPEG 2000":
        return imagecodecs.jpeg2k_decode(frame[_codestream(frame) :])
    if stream.name == "JPEG-LS":
        return imagecodecs.jpegls_decode(frame)
    if stream.samples == 3:  # naming one space for input and output keeps the decoder from converting
        return imagecodecs.jpeg8_decode(frame, colorspace="RGB", outcolorspace="RGB")
    return imagecodecs.jpeg8_decode(frame)


def _codestream(frame: bytes) -> int:
    return frame.find(_J2K) if frame.startswith(_JP2) else (0 if frame.startswith(_J2K) else -1)


def _jpeg_2000_facts(stream: bytes) -> Stream | None:
    """ISO/IEC 15444-1, A.5.1 (size) and A.6.1 (coding style)."""
    right, bottom, left, top = struct.unpack_from(">4I", stream, 8)
    samples = struct.unpack_from(">H", stream, 40)[0]
    kinds = {stream[42 + 3 * n] for n in range(samples)}
    if len(kinds) != 1:  # samples of different depth
        return None
    kind = kinds.pop()
    at = 4 + struct.unpack_from(">H", stream, 4)[0]
    transformed = False
    while stream[at] == 0xFF and stream[at + 1] != 0x90:  # up to the first tile
        if stream[at + 1] == 0x52:
            transformed = stream[at + 8] == 1
        at += 2 + struct.unpack_from(">H", stream, at + 2)[0]
    return Stream(
        "JPEG 2000", bottom - top, right - left, samples, (kind & 0x7F) + 1, bool(kind & 0x80),
        "transformed" if transformed else "",
    )  # fmt: skip


def _jpeg_facts(stream: bytes) -> Stream | None:
    """ISO/IEC 10918-1, B.2.2 (frame header), with the markers of JFIF and Adobe for the colour space."""
    at, colour = 2, ""
    while stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        length = struct.unpack_from(">H", stream, at + 2)[0]
        content = stream[at + 4 : at + 2 + length]
        if marker == 0xE0 and content.startswith(b"JFIF\0"):
            colour = "YBR"
        if marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12:
            colour = {0: "RGB", 1: "YBR"}.get(content[11], "")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            precision, rows, columns, samples = struct.unpack_from(">B2HB", content)
            names = bytes(content[6 + 3 * n] for n in range(samples))
            if names.upper() == b"RGB":
                colour = "RGB"
            name = "JPEG-LS" if marker == 0xF7 else "JPEG"
            return Stream(
                name, rows, columns, samples, precision, None, colour if samples == 3 else "",
                lossy=marker in (0xC0, 0xC1, 0xC2),
            )  # fmt: skip
        at += 2 + length
    return None
