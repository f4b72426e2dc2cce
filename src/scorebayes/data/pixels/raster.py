"""PNG and JPEG files. Pillow reads them at 8 bits; what has more bits is decoded by imagecodecs at its full depth."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import imagecodecs
import numpy as np
from PIL import Image
from PIL.ExifTags import Base as Tag

from scorebayes.data.pixels.decoding import check_size, decoding, upright
from scorebayes.data.pixels.numbers import Stored
from scorebayes.errors import DataError

INKS = "is in CMYK (amounts of ink for printing), which is not read"


_LOSSLESS, _OTHER_THAN_FRAMES, _SCAN_OR_END = b"\xc3\xc7\xcb\xcf", b"\xc4\xc8\xcc", b"\xd9\xda"
_WITHOUT_LENGTH = b"\x00\x01\xd0\xd1\xd2\xd3\xd4\xd5\xd6\xd7\xd8\xff"


class Header(NamedTuple):
    """What is known before anything is decoded. ``bits``: per sample."""

    width: int
    height: int
    bits: int
    lossless: bool = False


def read_png(path: Path, file: BinaryIO) -> Stored:
    """Grey [H, W] or RGB [H, W, 3]; an alpha channel is dropped."""
    depth = png_bits(path, file)
    with decoding(path), Image.open(file, formats=("PNG",)) as image:
        check_size(path, image.width * image.height)
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise DataError(f"{path} is an animation of {frames} images.", "Save each image to its own file.")
        image.load()
        orientation = image.getexif().get(Tag.Orientation, 1)
        if depth == 16 and image.mode.startswith("I"):
            pixels = np.asarray(image).astype(np.uint16)
        elif depth == 16:  # in colour or with alpha
            file.seek(0)
            pixels = imagecodecs.png_decode(file.read())
            pixels = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., 0]
        else:
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    return Stored(upright(pixels, orientation))


def png_bits(path: Path, file: BinaryIO) -> int:
    """Bits of a grey value or colour component: 1, 2, 4, 8 or 16."""
    head = file.read(26)
    file.seek(0)
    if head[12:16] != b"IHDR" or len(head) < 26:
        raise DataError(f"{path} is a PNG file without a header.", "Copy or download it again.")
    indexed = head[25] == 3
    return 8 if indexed else head[24]


def read_jpeg(path: Path, file: BinaryIO) -> Stored:
    """Grey [H, W] or RGB [H, W, 3]."""
    stream = file.read()
    with decoding(path):
        header = jpeg_header(stream)
    check_size(path, header.width * header.height)
    if header.bits != 8 or header.lossless:
        with decoding(path):
            pixels = imagecodecs.jpeg_decode(stream)
        if pixels.ndim == 3 and pixels.shape[2] == 4:
            raise DataError(f"{path} {INKS}.", "Convert it to grey or RGB.")
        return Stored(pixels, depth=header.bits)
    with decoding(path), Image.open(io.BytesIO(stream), formats=("JPEG",)) as image:
        check_size(path, image.width * image.height)
        if image.mode not in ("L", "RGB"):
            raise DataError(f"{path} {INKS}.", "Convert it to grey or RGB.")
        orientation = image.getexif().get(Tag.Orientation, 1)
        return Stored(upright(np.asarray(image), orientation))


def jpeg_bits(path: Path, file: BinaryIO) -> int:
    """Bits of a grey value or colour component: 8, 12 or, without loss, up to 16."""
    with decoding(path):
        return jpeg_header(file.read()).bits


def jpeg_header(stream: bytes) -> Header:
    """From the frame header (SOF). ValueError if there is none, or the stream ends before its image does: libjpeg fills
    what is missing with grey.
    """
    at = stream.find(b"\xff", 2)
    while 0 <= at < len(stream) - 9:
        code = stream[at + 1]
        if 0xC0 <= code <= 0xCF and code not in _OTHER_THAN_FRAMES:
            bits, height, width = struct.unpack_from(">BHH", stream, at + 4)
            if stream.find(b"\xff\xd9", at) < 0:
                raise ValueError("the JPEG stream is cut off")
            return Header(width, height, bits, code in _LOSSLESS)
        if code in _SCAN_OR_END:
            break
        # Decoders, too, skip what is no marker.
        at = stream.find(
            b"\xff", at + (1 if code in _WITHOUT_LENGTH else 2 + int.from_bytes(stream[at + 2 : at + 4]))
        )
    raise ValueError("the JPEG stream has no frame header")
