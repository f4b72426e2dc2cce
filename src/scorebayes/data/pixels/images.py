"""Pixels from files: PNG, JPEG, TIFF, NPY and DICOM, told apart by content, not by name.

Files come from strangers: sizes are read from the header and checked before anything is decoded, pickles are never opened,
every complaint of a decoder becomes one DataError that names the file, and all this happens in a process that may die
(``box``). One file each reads ``raster`` (PNG, JPEG), ``tiff``, ``npy`` and ``dicom``; ``numbers`` scales what they find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from scorebayes.data.pixels import box

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy", ".dcm", ".dicom")


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
    are taken to use all 16. Floating-point numbers must lie in [0, 1] already.
    ``modalities``: those a DICOM file may be of; empty for any.
    """
    stored, laterality, view = box.read(path, modalities)
    return Picture(stored.unit(path, bits), laterality, view)


def read_image(path: Path, bits: int | None = None, modalities: Sequence[str] = ()) -> NDArray:
    """The pixels of ``open_picture``."""
    return open_picture(path, bits, modalities).pixels


def image_bits(path: Path) -> int:
    """Bits of a grey value or colour component, from the header: what the file declares, and 16 for floating-point
    numbers."""
    return box.bits(path)
