"""DICOM: grey-scale images as they are meant to be displayed, and nothing that identifies a person.

Section numbers are those of the DICOM standard, part 3 (PS3.3). Messages of the parser are never passed on:
they may quote the value of any tag.
"""

from __future__ import annotations

import logging
import os
import struct
import warnings
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_modality_lut, apply_voi, get_decoder

from scorebayes.data.pixels.files import require_file
from scorebayes.errors import DataError

MAX_PIXELS = 64_000_000  # rows x columns; the largest detectors have about 25 million
MAX_BYTES = 512_000_000  # of a file, or of its inflated content
MAX_DEPTH = 100  # of nested sequences
MAMMOGRAPHY = ("MG",)

_TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"
_GREY = ("MONOCHROME1", "MONOCHROME2")


def read_dicom(path: Path, *, modalities: Collection[str] = (), window: bool = True) -> NDArray[np.float32]:
    """Pixels [H, W] float32 in [0, 1], background dark: modality LUT, VOI LUT or first window, MONOCHROME1
    inverted once, padding set to 0.

    Without a window (or with ``window=False``) the whole range of the stored bits maps to [0, 1] and nothing
    is clipped: whole numbers of b bits come back exactly as k / (2**b - 1).

    Parameters
    ----------
    modalities: values of Modality that are accepted; all where empty.

    Raises DataError for what is no single grey-scale image, is damaged, or needs a decoder that is not
    installed.
    """
    require_file(path)
    with path.open("rb") as file:
        return _image(path, _parse(path, file), modalities, window)


def open_dicom(
    path: Path, file: BinaryIO, modalities: Collection[str] = ()
) -> tuple[NDArray[np.float32], str, str]:
    """The same of a file that is open, with laterality ("L", "R" or "") and view ("CC", "MLO", another code, or "") by the
    header; no other tag is given out."""
    dataset = _parse(path, file)
    with _decoding(path):
        side, view = _side_and_view(dataset)
    return _image(path, dataset, modalities), side, view


def _image(
    path: Path, dataset: pydicom.Dataset, modalities: Collection[str], window: bool = True
) -> NDArray[np.float32]:
    with _decoding(path):
        _require_grey_image(path, dataset, modalities)
        stored = dataset.pixel_array
        if stored.shape != (dataset.Rows, dataset.Columns):
            raise DataError(f"{path} holds more than one image.", "Export one image per file.")
        padding = _padding(dataset, stored)
        pixels, low, high = _modality(dataset, stored)
        if window:
            pixels, low, high = _voi(path, dataset, pixels, low, high)
        found = float(pixels.min()), float(pixels.max())
        if found[0] < low or found[1] > high:
            raise DataError(
                f"{path} has values {found[0]:g} to {found[1]:g}, but its header says {low:g} to {high:g}.",
                "Correct Bits Stored in the file, or leave it out.",
            )
        image = (pixels.astype(np.float32) - np.float32(low)) / np.float32(high - low)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            image = 1 - image
        if padding is not None:
            image[padding] = 0
        return image


def dicom_bits(path: Path) -> int:
    """Bits stored per pixel, 1 to 16. DataError where the header does not say."""
    require_file(path)
    with path.open("rb") as file, _decoding(path):
        return _whole_number(path, _parse(path, file), "BitsStored", 16)


def _side_and_view(dataset: pydicom.Dataset) -> tuple[str, str]:
    """CBIS-DDSM writes the view into Patient Orientation."""
    side = _code(dataset, "ImageLaterality") or _code(dataset, "Laterality")
    view = _code(dataset, "ViewPosition")
    orientation = _code(dataset, "PatientOrientation")
    if not view and orientation in ("CC", "MLO"):
        view = orientation
    return (side[:1] if side in ("L", "R", "LEFT", "RIGHT") else "", view if view.isalpha() else "")


def _code(dataset: pydicom.Dataset, keyword: str) -> str:
    value = dataset.get(keyword, "")
    return value.strip().upper()[:16] if isinstance(value, str) else ""


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Whatever the parser or a decoder raises becomes one line; their warnings and logs, which quote tags,
    are dropped.
    """
    logger = logging.getLogger("pydicom")
    silent = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except Exception as error:  # parser and decoders raise anything on damaged input
        raise DataError(
            f"{path} is damaged: its DICOM content cannot be decoded ({type(error).__name__}).",
            "Copy it again.",
        ) from None
    finally:
        logger.disabled = silent


def _parse(path: Path, file: BinaryIO) -> pydicom.Dataset:
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
        raise DataError(
            f"{path} has {size / 1e6:.0f} MB, but at most {MAX_BYTES / 1e6:.0f} MB are read.",
            "Leave it out.",
        )
    data = file.read()
    if data[128:132] != b"DICM":
        start = data[:256].lstrip().lower()
        if start.startswith((b"<!doctype", b"<html", b"<?xml")):
            raise DataError(f"{path} is a web page, not DICOM: a failed download.", "Download it again.")
        raise DataError(f"{path} is not DICOM: the marker DICM at byte 128 is missing.", "Check the file.")
    with _decoding(path):
        _check_inflated_size(path, data)
        try:
            dataset = pydicom.dcmread(BytesIO(data))
        except RecursionError:
            raise _too_deep(path) from None
        if _depth(dataset) > MAX_DEPTH:
            raise _too_deep(path)
        return dataset


def _too_deep(path: Path) -> DataError:
    return DataError(f"{path} has sequences nested more than {MAX_DEPTH} levels deep.", "Leave it out.")


def _check_inflated_size(path: Path, data: bytes) -> None:
    """Inflate in pieces, keeping none, so that a small file cannot fill the memory: the parser inflates all
    at once.
    """
    if uid.DeflatedExplicitVRLittleEndian.encode() not in data[132:4096]:
        return
    if data[132:136] != b"\x02\0\0\0":
        raise DataError(
            f"{path} is compressed (deflated), but the length of its header is missing.", "Export it again."
        )
    group_length = struct.unpack_from("<I", data, 140)[0]  # value of (0002,0000), which begins group 2
    inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    rest = data[144 + group_length :]
    while rest and not inflate.eof:
        total += len(inflate.decompress(rest, 1 << 20))
        rest = inflate.unconsumed_tail
        if total > MAX_BYTES:
            raise DataError(f"{path} unpacks to more than {MAX_BYTES / 1e6:.0f} MB.", "Leave it out.")


def _depth(dataset: pydicom.Dataset) -> int:
    """Levels of nested sequences. Only those that were parsed count: the others stay bytes, since nothing
    reads them.
    """
    deepest, level = 0, [dataset]
    while level:
        elements = [element for item in level for element in item.values() if element.VR == "SQ"]
        level = [
            item for element in elements if isinstance(element, pydicom.DataElement) for item in element.value
        ]
        deepest += bool(elements)
        if deepest > MAX_DEPTH:
            break
    return deepest


def _whole_number(path: Path, dataset: pydicom.Dataset, keyword: str, most: int) -> int:
    value = dataset.get(keyword)
    if not isinstance(value, int) or not 1 <= value <= most:
        raise DataError(
            f"{path}: {keyword} is missing or not a whole number from 1 to {most}.", "Leave the file out."
        )
    return value


def _require_grey_image(path: Path, dataset: pydicom.Dataset, modalities: Collection[str]) -> None:
    """Refuse, in words, all that is not one grey-scale image of an accepted modality."""
    if "PixelData" not in dataset:
        raise DataError(
            f"{path} holds no image (no pixel data).", "Leave it out, or copy it again if it was cut off."
        )
    modality = _code(dataset, "Modality")
    if modalities and modality not in modalities:
        raise DataError(f"{path} has modality {modality or 'unknown'!r}, expected {' or '.join(modalities)}.")
    frames = dataset.get("NumberOfFrames") or 1
    if dataset.get("SOPClassUID") == _TOMOSYNTHESIS:
        raise DataError(
            f"{path} is a tomosynthesis image, which is not supported.",
            "Give the 2-D or synthetic 2-D image.",
        )
    if frames != 1:
        raise DataError(f"{path} holds {int(frames)} frames, expected one image.", "Export single frames.")
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise DataError(f"{path} is a colour image, but grey is expected.", "Export the grey-scale original.")
    if dataset.get("PhotometricInterpretation") not in _GREY:
        raise DataError(
            f"{path}: Photometric Interpretation is missing or not {' or '.join(_GREY)}.",
            "Correct the header (it says which end is dark), or leave the file out.",
        )
    rows, columns = (_whole_number(path, dataset, keyword, 65535) for keyword in ("Rows", "Columns"))
    allocated = _whole_number(path, dataset, "BitsAllocated", 16)
    _whole_number(path, dataset, "BitsStored", allocated)
    if rows * columns > MAX_PIXELS:
        raise DataError(
            f"{path} has {columns} x {rows} pixels, but at most {MAX_PIXELS} are read.", "Leave it out."
        )
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise DataError(
            f"{path} does not say how its pixels are encoded (no transfer syntax).", "Export it again."
        )
    if not syntax.is_encapsulated:
        there, needed = len(dataset.PixelData), rows * columns * allocated // 8
        if there < needed:
            raise DataError(
                f"{path} is incomplete: it has {there} of {needed} bytes of pixels.",
                "Copy or download it again.",
            )
        return
    _require_decoder(path, syntax, dataset.BitsStored)
    coded = _coded_size(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    if coded is not None and coded != (rows, columns):
        raise DataError(
            f"{path}: the compressed image is {coded[1]} x {coded[0]}, but the header says {columns} x {rows}.",
            "Export it again, or leave it out.",
        )


def _require_decoder(path: Path, syntax: uid.UID, bits: int) -> None:
    remedy = "Install python-gdcm and pyjpegls, or store the file uncompressed."
    if syntax == uid.JPEGExtended12Bit and bits > 8:
        remedy = "Install pylibjpeg and pylibjpeg-libjpeg (GPL), or store the file uncompressed."
    try:
        decoder = get_decoder(syntax)
        available = decoder.is_available
        if syntax == uid.JPEGExtended12Bit and bits > 8:
            available = "pylibjpeg" in decoder.available_plugins
    except NotImplementedError:
        available = False
    if not available:
        raise DataError(f"{path} is encoded as {syntax.name}, but no decoder for it is installed.", remedy)


def _coded_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream announces; None where it is none of these."""
    if frame[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: SOC, SIZ
        right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
        return bottom - top, right - left
    if frame[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], struct.unpack_from(">H", frame, at + 2)[0]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return struct.unpack_from(">2H", frame, at + 5)
        at += 2 + length
    return None


def _padding(dataset: pydicom.Dataset, stored: NDArray) -> NDArray[np.bool_] | None:
    """Where the detector saw nothing (C.7.5.1.1.2), by value or range of values."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(first), int(first if last is None else last)))
    return stored == low if low == high else (stored >= low) & (stored <= high)


def _modality(dataset: pydicom.Dataset, stored: NDArray) -> tuple[NDArray, float, float]:
    """Modality LUT or rescale (C.11.1), with the lowest and highest value that can come out."""
    if dataset.get("ModalityLUTSequence"):
        bits = dataset.ModalityLUTSequence[0].LUTDescriptor[2]
        return apply_modality_lut(stored, dataset), 0.0, float(2**bits - 1)
    bits = dataset.BitsStored
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)
    slope, intercept = (
        float(dataset.get(key) or default) for key, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    low, high = sorted(slope * end + intercept for end in ends)
    if (slope, intercept) != (1, 0):
        stored = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    return stored, low, high


def _voi(
    path: Path, dataset: pydicom.Dataset, pixels: NDArray, low: float, high: float
) -> tuple[NDArray, float, float]:
    """VOI LUT, else the first window (C.11.2), else the values as they are."""
    if dataset.get("VOILUTSequence"):
        bits = dataset.VOILUTSequence[0].LUTDescriptor[2]
        return apply_voi(np.rint(pixels).astype(np.int64), dataset), 0.0, float(2**bits - 1)
    center, width = (_first(dataset.get(key)) for key in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return pixels, low, high
    function = _code(dataset, "VOILUTFunction") or "LINEAR"
    if width < 1 if function == "LINEAR" else width <= 0:
        raise DataError(
            f"{path}: the window width {width:g} is not allowed.", "Correct the header, or leave it out."
        )
    pixels = pixels.astype(np.float32)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (pixels - np.float32(center)) / np.float32(width))), 0.0, 1.0
    if function == "LINEAR":  # C.11.2.1.2.1: the window spans width - 1 steps around center - 0.5
        center, width = center - 0.5, width - 1
    if width == 0:
        return (pixels > center).astype(np.float32), 0.0, 1.0
    return np.clip((pixels - np.float32(center)) / np.float32(width) + np.float32(0.5), 0, 1), 0.0, 1.0


def _first(value: Any) -> float | None:
    """The first of one or several numbers; None where there is none."""
    if value is None or isinstance(value, str):
        return None
    values = list(value) if isinstance(value, pydicom.multival.MultiValue) else [value]
    return float(values[0]) if values else None
