"""TIFF files, read by tifffile: one image, at its own depth, upright, black as 0.

The header is judged before anything is decoded: the size of the image and of every part of it, the bytes that must be
there, and what the numbers mean. What could come out wrong is refused, with the reason.
"""

from __future__ import annotations

import io
import logging
import math
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile, TiffPage

from scorebayes.data.pixels.decoding import check_size, decoding, upright
from scorebayes.data.pixels.numbers import Stored
from scorebayes.data.pixels.raster import INKS, Header, jpeg_header
from scorebayes.errors import DataError

logging.getLogger("tifffile").addHandler(
    logging.NullHandler()
)  # keeps its remarks on odd tags off the terminal

_AGAIN = "Copy or download it again, or leave it out."
_PLAIN = "Save it as plain grey or RGB."
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_OTHER_COLOURS = {
    4: "is a transparency mask, not an image",
    5: INKS,
    8: "is in CIELab, which is not read",
    9: "is in ICCLab, which is not read",
    10: "is in ITULab, which is not read",
    32803: "is a camera's raw file, which is not read",
    34892: "is a camera's raw file, which is not read",
    32844: "holds logarithms of luminance, which are not read",
    32845: "holds logarithms of luminance, which are not read",
}
_JPEG, _JPEG_2000 = 7, 34712
# None, CCITT (three), LZW, JPEG, Deflate (two), PackBits, LZMA, JPEG 2000, Zstandard: their output is bounded by the size
# that the header declares, or their own header is checked.
_COMPRESSIONS = (1, 2, 3, 4, 5, _JPEG, 8, 32946, 32773, 34925, _JPEG_2000, 50000)
_FLOAT, _COMPLEX = 3, (5, 6)
MOST_DIRECTORIES = 100  # of pages; a pyramid has about ten


def read_tiff(path: Path, file: BinaryIO) -> Stored:
    """Grey [H, W] or RGB [H, W, 3]; an extra channel (alpha) is dropped."""
    with decoding(path), TiffFile(file) as tiff:
        page = _only_page(path, tiff)
        _check(path, page)
        _check_parts(path, page, file)
        stored = _in_the_file(page, file) if page.is_memmappable else page.asarray(maxworkers=1)
        if page.planarconfig == 2 and page.samplesperpixel > 1:
            stored = np.moveaxis(stored, 0, -1)
        colour = 3 if page.photometric in (_RGB, _YCBCR) else 1
        if stored.ndim == 3:
            stored = stored[..., :3] if colour == 3 else stored[..., 0]
        stored = upright(stored, page.tags.valueof("Orientation", 1))
        if page.photometric == _PALETTE:
            return Stored(_colours(page)[stored.astype(np.uint16)])
        return Stored(stored, page.bitspersample, page.photometric == _WHITE_IS_ZERO)


def _in_the_file(page: TiffPage, file: BinaryIO) -> NDArray:
    """Uncompressed pixels that lie in one piece, of which nothing is read yet."""
    assert page.dtype is not None
    dtype = page.dtype.newbyteorder(page.parent.byteorder)
    return np.memmap(file, dtype, "r", page.dataoffsets[0], page.shape)


def tiff_bits(path: Path, file: BinaryIO) -> int:
    """Bits of a grey value or colour component as declared, at most 16; 16 for floating-point numbers."""
    with decoding(path), TiffFile(file) as tiff:
        page = _only_page(path, tiff)
        _check(path, page)
        if page.photometric == _PALETTE:
            return 8
        return 16 if page.sampleformat == _FLOAT else min(16, page.bitspersample)


def _only_page(path: Path, tiff: TiffFile) -> TiffPage:
    """The one image at full size. Reduced copies of it (pyramids, thumbnails) and masks may lie beside it."""
    full: list[TiffPage] = []
    seen: set[int] = set()
    for page in (one.aspage() for one in tiff.pages):
        if page.offset in seen:  # the chain of pages bites its tail
            break
        seen.add(page.offset)
        if len(seen) > MOST_DIRECTORIES:
            raise DataError(f"{path} has more than {MOST_DIRECTORIES} directories (images).", _PLAIN)
        reduced_or_mask = page.subfiletype & 0b101
        if not reduced_or_mask:
            full.append(page)
    if len(full) > 1:
        raise DataError(f"{path} holds {len(full)} images.", "Save each image to its own file.")
    if not full and len(seen) == 1 and "SubIFDs" not in page.tags:
        full.append(page)
    if not full:
        raise DataError(f"{path} holds only reduced copies or masks of an image.", _PLAIN)
    n_images = _n_images_of(tiff, full[0])
    if n_images > 1:
        raise DataError(f"{path} holds {n_images} images.", "Save each image to its own file.")
    return full[0]


def _n_images_of(tiff: TiffFile, page: TiffPage) -> int:
    """How many images lie in one piece behind a single header: as ImageJ, tifffile and MetaMorph write a stack."""
    if page.imagedepth > 1:
        return page.imagedepth
    if tiff.is_imagej:
        return int((tiff.imagej_metadata or {}).get("images", 1))
    if tiff.is_shaped:
        shape = (tiff.shaped_metadata or ({},))[0].get("shape", ())
        return math.prod(shape) // math.prod(page.shape) if shape else 1
    stack = page.tags.get("UIC2tag")
    return stack.count if stack is not None else 1


def _check(path: Path, page: TiffPage) -> None:
    """DataError where the header says that the numbers are no grey or RGB values, or not which."""
    if not page.imagewidth or not page.imagelength:
        raise DataError(f"{path} has no width or height.", _AGAIN)
    check_size(path, page.imagewidth * page.imagelength)
    if page.compression not in _COMPRESSIONS:
        name = getattr(page.compression, "name", "").replace("_", " ") or f"method {page.compression}"
        raise DataError(
            f"{path} is compressed by {name}, which is not read.",
            "Save it uncompressed, or with LZW or Deflate.",
        )
    if page.sampleformat in _COMPLEX:
        raise DataError(f"{path} holds complex numbers, not grey values.", "Save their magnitude.")
    if "PhotometricInterpretation" not in page.tags:
        raise DataError(
            f"{path} does not say whether 0 is black or white (PhotometricInterpretation is missing).", _PLAIN
        )
    if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR):
        what = _OTHER_COLOURS.get(
            page.photometric, f"has PhotometricInterpretation {int(page.photometric)}, which is not read"
        )
        raise DataError(f"{path} {what}.", _PLAIN)
    if page.photometric == _YCBCR and (page.compression != _JPEG or page.planarconfig == 2):
        raise DataError(f"{path} is in YCbCr without JPEG, which is not read.", _PLAIN)
    if isinstance(page.bitspersample, tuple) or page.dtype is None:
        raise DataError(
            f"{path} holds numbers of {page.bitspersample} bits (SampleFormat {int(page.sampleformat)}), "
            "which are not read.",
            "Save it with 8 or 16 bits.",
        )
    if page.predictor != 1 and page.bitspersample % 8:
        raise DataError(f"{path} holds differences of {page.bitspersample} bits, which are not read.", _PLAIN)
    colour = 3 if page.photometric in (_RGB, _YCBCR) else 1
    if not colour <= page.samplesperpixel <= colour + 1:
        raise DataError(
            f"{path} has {page.samplesperpixel} channels.", "Expected grey or RGB, with alpha or without."
        )


def _check_parts(path: Path, page: TiffPage, file: BinaryIO) -> None:
    """DataError where a strip or tile is missing, lies beyond the end of the file, or is larger than declared."""
    height, width = page.imagelength, page.imagewidth
    if page.is_tiled:
        tall, wide = page.tilelength, page.tilewidth
        check_size(path, tall * wide)
        n_parts = -(-height // tall) * -(-width // wide) if tall and wide else 0
    else:
        tall, wide = page.rowsperstrip, width
        n_parts = -(-height // tall) if tall else 0
    n_parts *= page.samplesperpixel if page.planarconfig == 2 else 1
    end = file.seek(0, io.SEEK_END)
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(parts) < n_parts or not n_parts:
        raise DataError(f"{path} has {len(parts)} of {n_parts} parts of the image.", _AGAIN)
    for offset, count in parts[:n_parts]:
        if offset <= 0 or count <= 0:
            raise DataError(f"{path} lacks a part of the image.", _AGAIN)
        if offset + count > end:
            raise DataError(
                f"{path} ends before its image does: it has {end} bytes of {offset + count}.", _AGAIN
            )
        if page.compression in (_JPEG, _JPEG_2000):
            file.seek(offset)
            part = file.read(count)
            own = jpeg_header(part) if page.compression == _JPEG else _jpeg_2000_header(part)
            if own.width > wide or own.height > tall or own.bits != page.bitspersample:
                raise DataError(
                    f"{path}: a compressed part has {own.width} x {own.height} pixels of {own.bits} bits, "
                    f"but its header says {wide} x {tall} of {page.bitspersample}.",
                    _AGAIN,
                )


def _jpeg_2000_header(stream: bytes) -> Header:
    """From the marker SIZ, which begins a stream."""
    start = stream.find(b"\xff\x4f\xff\x51")
    right, bottom, left, top = struct.unpack_from(">4I", stream, start + 8) if start >= 0 else (0, 0, 0, 0)
    if right <= left or bottom <= top:
        raise ValueError("the JPEG 2000 stream has no size")
    return Header(right - left, bottom - top, (stream[start + 42] & 0x7F) + 1)


def _colours(page: TiffPage) -> NDArray[np.uint8]:
    """The palette [2**bits, 3]. Its entries have 16 bits, of which only the upper 8 are alike in all writers; some
    write 8-bit entries."""
    colours = np.asarray(page.tags.valueof("ColorMap"), dtype=np.uint16).reshape(3, -1).T
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)
