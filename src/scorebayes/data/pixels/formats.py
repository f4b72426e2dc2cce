"""Which format a file has, by its content, and what its reader finds in it. This is what happens inside the box."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from scorebayes.data.pixels.files import require_file
from scorebayes.data.pixels.numbers import Stored
from scorebayes.errors import DataError

_ROOMS = {"png": "raster", "jpeg": "raster", "tiff": "tiff", "npy": "npy", "dicom": "dicom"}
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"\x93NUMPY": "npy",
}
_TO_PNG = "Save it as PNG or TIFF."
_NOT_READ = {
    b"GIF8": ("a GIF picture", _TO_PNG),
    b"\0\0\0\x0cjP  ": ("a JPEG 2000 picture", _TO_PNG),
    b"\xff\x4f\xff\x51": ("a JPEG 2000 stream", _TO_PNG),
    b"\0\0\0\x0cJXL ": ("a JPEG XL picture", _TO_PNG),
    b"\xff\x0a": ("a JPEG XL picture", _TO_PNG),
    b"II\xbc": ("a JPEG XR picture", _TO_PNG),
    b"8BPS": ("a Photoshop file", _TO_PNG),
    b"\x76\x2f\x31\x01": ("an OpenEXR picture", _TO_PNG),
    b"qoif": ("a QOI picture", _TO_PNG),
    b"DDS ": ("a DirectDraw picture", _TO_PNG),
    b"%PDF": ("a PDF document", "Save its image as PNG or TIFF."),
    b"%!PS": ("a PostScript document", "Save its image as PNG or TIFF."),
    b"PK\x03\x04": (
        "a ZIP archive",
        "Unpack it. An npz file with images and labels is opened as arrays:PATH.",
    ),
    b"\x1f\x8b": ("a gzip archive", "Unpack it. Of a volume, save the slices as PNG, TIFF or NPY."),
    b"\x89HDF": ("an HDF5 file", "Save its images as PNG, TIFF or NPY."),
    b"NRRD": ("an NRRD volume", "Save its slices as PNG, TIFF or NPY."),
    b"NDims": ("a MetaImage volume", "Save its slices as PNG, TIFF or NPY."),
    b"ObjectType": ("a MetaImage volume", "Save its slices as PNG, TIFF or NPY."),
}


@dataclass(frozen=True)
class Content:
    """What a file holds: its numbers, and what a DICOM header says of side ("L", "R" or "") and view."""

    stored: Stored
    laterality: str = ""
    view: str = ""


def read_content(path: Path, modalities: Sequence[str] = ()) -> Content:
    """Open a file once and read it. DataError names the file and the cause.

    ``modalities``: those a DICOM file may be of; empty for any.
    """
    require_file(path)
    with path.open("rb") as file:
        kind = _kind(path, file)
        if kind == "dicom":
            return Content(*_function(kind, "open_dicom")(path, file, modalities))
        return Content(_function(kind, f"read_{kind}")(path, file))


def read_bits(path: Path) -> int:
    """Bits of a grey value or colour component, from the header."""
    require_file(path)
    with path.open("rb") as file:
        kind = _kind(path, file)
        bits: int = _function(kind, f"{kind}_bits")(*((path,) if kind == "dicom" else (path, file)))
        return bits


def _function(kind: str, name: str) -> Callable[..., Any]:
    """Of the reader of a format, which is imported at its first file: some take half a second."""
    function: Callable[..., Any] = getattr(importlib.import_module(f"{__package__}.{_ROOMS[kind]}"), name)
    return function


def _kind(path: Path, file: BinaryIO) -> str:
    """By the content. DICM at byte 128 decides first: what stands before it may be the beginning of any other format."""
    head = file.read(512)
    file.seek(0)
    if head[128:132] == b"DICM":
        return "dicom"
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(f"{path} is a web page, not an image (a failed download?).", "Download it again.")
    what, advice = _known_but_not_read(head)
    if what:
        raise DataError(f"{path} is {what}, which is not read.", advice)
    if path.suffix.lower() in (".dcm", ".dicom"):
        return "dicom"  # some lack the preamble: the reader knows
    raise DataError(f"{path} is not in a known image format.", "Expected PNG, JPEG, TIFF, NPY or DICOM.")


def _known_but_not_read(head: bytes) -> tuple[str, str]:
    """What else a file is and what to do, or two empty texts."""
    for signature, known in _NOT_READ.items():
        if head.startswith(signature):
            return known
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "a WebP picture", _TO_PNG
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return "a BMP picture", _TO_PNG
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"):
        return "an AVIF or HEIF picture", _TO_PNG
    if head[:1] == b"P" and head[1:2] in b"1234567fF" and head[2:3].isspace():
        return "a PNM picture", _TO_PNG
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return "a NIfTI volume", "Save its slices as PNG, TIFF or NPY."
    return "", ""
