"""Pixels from files: PNG, JPEG, TIFF, NPY and (through ``dicom``) DICOM, told apart by content, not by name.

Files come from strangers: sizes are read from the header and checked before anything is decoded, pickles are
never opened, and every complaint of a decoder becomes one DataError that names the file.
"""

from __future__ import annotations

import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from scorebayes.data.pixels.dicom import dicom_bits, open_dicom
from scorebayes.data.pixels.files import require_file
from scorebayes.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy", ".dcm", ".dicom")
MAX_PIXELS = 100_000_000
MAX_NPZ_BYTES = 16 * 2**30

_GREY_16 = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_UNREADABLE = (OSError, ValueError, EOFError, SyntaxError, TypeError, IndexError, KeyError, OverflowError)
_AGAIN = "Copy or download it again, or leave it out."


@dataclass(frozen=True)
class Picture:
    """What a file holds: pixels [H, W] or [H, W, 3] float32 in [0, 1], and what a DICOM header says of side ("L", "R" or
    "") and view."""

    pixels: NDArray
    laterality: str = ""
    view: str = ""


def open_picture(path: Path, bits: int | None = None, modalities: Sequence[str] = ()) -> Picture:
    """Read a file, which is opened once; an alpha channel is dropped. DataError names the file and the cause.

    ``bits`` is the true depth of images stored in 16 bits (a 12-bit image in a 16-bit file); without it they
    are taken to use all 16. Floating-point arrays must lie in [0, 1] already. Colour is read at 8 bits.
    ``modalities``: those a DICOM file may be of; empty for any.
    """
    require_file(path)
    with path.open("rb") as file:
        kind = _kind(path, file)
        if kind == "dicom":
            return Picture(*open_dicom(path, file, modalities))
        pixels = _read_npy(path, file) if kind == "npy" else _read_picture(path, file)
    if pixels.ndim == 3 and pixels.shape[2] in (1, 2, 4):
        pixels = pixels[..., 0] if pixels.shape[2] < 3 else pixels[..., :3]
    if pixels.size == 0 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise DataError(f"{path} has shape {pixels.shape}.", "Expected one image, (H, W) or (H, W, 3).")
    return Picture(to_unit(pixels, path, bits))


def read_image(path: Path, bits: int | None = None, modalities: Sequence[str] = ()) -> NDArray:
    """The pixels of ``open_picture``."""
    return open_picture(path, bits, modalities).pixels


def may_be_image(path: PurePath) -> bool:
    """By the name: an image's suffix, or none, as DICOM files often have."""
    return path.suffix.lower() in (*SUFFIXES, "")


def image_bits(path: Path) -> int:
    """Bit depth of the stored grey values, from the header: 8 or 16, or what a DICOM file declares."""
    require_file(path)
    with path.open("rb") as file:
        kind = _kind(path, file)
        if kind == "dicom":
            return dicom_bits(path)
        if kind == "npy":
            with _decoding(path):
                return 8 if _mapped(file).dtype.itemsize == 1 else 16
        with _decoding(path), Image.open(file) as image:
            return 16 if image.mode in (*_GREY_16, "F") else 8


def read_npz(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray]:
    """The named arrays of an npz file, and those of the optional ones that are there. DataError if one is missing or
    the file is no npz; pickles are not opened.
    """
    require_file(path)
    with _decoding(path, "is not a readable npz file"):
        with zipfile.ZipFile(path) as archive:
            found = sorted(entry.filename.removesuffix(".npy") for entry in archive.infolist())
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_NPZ_BYTES:
            raise DataError(
                f"{path} would unpack to {unpacked / 2**30:.0f} GiB, which is too much.", "Leave it out."
            )
        missing = [name for name in names if name not in found]
        if missing:
            raise DataError(f"{path} has no array {', '.join(missing)}. It has {', '.join(found) or 'none'}.")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in [*names, *(set(optional) & set(found))]}


def is_stack(images: NDArray) -> bool:
    """Whether an array has the shape of many images, [N, H, W] (grey) or [N, H, W, 3] (RGB)."""
    return images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)


@contextmanager
def _decoding(path: Path, problem: str = "cannot be decoded") -> Iterator[None]:
    """Turn what decoders raise into a DataError; their warnings on size are ours to judge."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except Image.DecompressionBombError:
        raise DataError(
            f"{path} has more than {MAX_PIXELS / 1e6:.0f} million pixels.", "Reduce it."
        ) from None
    except (*_UNREADABLE, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError) as error:
        raise DataError(
            f"{path} {problem}: {' '.join(str(error).split())[:200].rstrip('.')}.", _AGAIN
        ) from error


def _kind(path: Path, file: BinaryIO) -> str:
    """By the content. DICM at byte 128 decides first: what stands before it may be the beginning of any other format."""
    head = file.read(512)
    file.seek(0)
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "picture"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(f"{path} is a web page, not an image (a failed download?).", "Download it again.")
    if path.suffix.lower() in (".dcm", ".dicom"):
        return "dicom"  # some lack the preamble: the reader knows
    raise DataError(f"{path} is not in a known image format.", "Expected PNG, JPEG, TIFF, NPY or DICOM.")


def _check_size(path: Path, n_pixels: int) -> None:
    if n_pixels > MAX_PIXELS:
        raise DataError(
            f"{path} has {n_pixels / 1e6:.0f} million pixels, but at most {MAX_PIXELS / 1e6:.0f} million are read.",
            "Reduce it.",
        )


def _read_picture(path: Path, opened: BinaryIO) -> NDArray:
    with _decoding(path), Image.open(opened, formats=("PNG", "JPEG", "TIFF")) as file:
        _check_size(path, file.width * file.height)
        white_is_zero = False
        if isinstance(file, TiffImageFile):
            if file.n_frames > 1:
                raise DataError(f"{path} holds {file.n_frames} images.", "Save each image to its own file.")
            # Photometric interpretation 0 (white is zero) is undone by Pillow at 8 bits only.
            white_is_zero = file.tag_v2.get(262) == 0
        image = ImageOps.exif_transpose(file)
        if image.mode in _GREY_16:
            grey = np.asarray(image).astype(np.int64)
            if grey.min() < 0 or grey.max() > 65535:
                raise DataError(
                    f"{path} holds grey values from {grey.min()} to {grey.max()}.", "Save it with 16 bits."
                )
            return (65535 - grey if white_is_zero else grey).astype(np.uint16)
        if image.mode == "F":
            return np.asarray(image)
        return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB"))


def _read_npy(path: Path, file: BinaryIO) -> NDArray:
    with _decoding(path):
        mapped = _mapped(file)
        _check_size(path, mapped.size)
        return np.array(mapped)


def _mapped(file: BinaryIO) -> NDArray:
    """The array of an NPY file, of which nothing is read yet. ValueError for pickles."""
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in header:
        raise ValueError(f"NPY version {version} is not read")
    shape, fortran, dtype = header[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def to_unit(pixels: NDArray, path: Path | str, bits: int | None = None) -> NDArray:
    """Stored numbers to float32 in [0, 1]: bool, uint8, uint16 of ``bits`` (16), or floating-point numbers that are
    there already. DataError for others; ``path`` names them."""
    if pixels.dtype == np.bool_:
        return pixels.astype(np.float32)
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / 255
    if pixels.dtype == np.uint16:
        top = 2 ** (bits or 16) - 1
        if pixels.max() > top:
            raise DataError(
                f"{path} has grey value {pixels.max()}, which needs more than {bits} bits.",
                "Increase the option bits.",
            )
        return (pixels / top).astype(np.float32)
    if pixels.dtype.kind != "f":
        raise DataError(
            f"{path} holds {pixels.dtype} numbers, which are not supported.",
            "Save them as uint8, uint16, or float in [0, 1].",
        )
    if not np.isfinite(pixels).all():
        raise DataError(f"{path} holds NaN or infinite values.", "Repair the image or leave it out.")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        raise DataError(f"{path} has values from {low:.4g} to {high:.4g}.", "Scale them to [0, 1].")
    return pixels.astype(np.float32)
