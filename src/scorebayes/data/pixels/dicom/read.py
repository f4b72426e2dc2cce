"""One DICOM file to pixels [H, W] or [H, W, 3] in [0, 1]."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray

from scorebayes.data.pixels.dicom.colour import palette, rgb
from scorebayes.data.pixels.dicom.frame import read_words
from scorebayes.data.pixels.dicom.grey import grey_bits, grey_curve
from scorebayes.data.pixels.dicom.header import GREY, PALETTE, read_header
from scorebayes.data.pixels.dicom.parse import parse
from scorebayes.data.pixels.dicom.tags import Tags
from scorebayes.data.pixels.dicom.words import stored_values
from scorebayes.data.pixels.files import require_file
from scorebayes.data.pixels.numbers import Stored
from scorebayes.errors import DataError


def read_dicom(path: Path, *, modalities: Collection[str] = (), window: bool = True) -> NDArray[np.float32]:
    """Grey pixels [H, W] or RGB [H, W, 3], float32 in [0, 1]. Grey has a dark background: modality LUT, VOI LUT or first
    window, MONOCHROME1 inverted once, padding set to 0.

    Without a window (or with ``window=False``) the whole range of the stored bits maps to [0, 1] and nothing
    is clipped: whole numbers of b bits come back exactly as k / (2**b - 1).

    Parameters
    ----------
    modalities: values of Modality that are accepted; all where empty.

    Raises DataError for what is no single image, is damaged, or contradicts itself so that its pixels aren't known.
    """
    require_file(path)
    with path.open("rb") as file, _quiet(path):
        return _stored(parse(path, file), modalities, window).unit(path)


def open_dicom(path: Path, file: BinaryIO, modalities: Collection[str] = ()) -> tuple[Stored, str, str]:
    """The same of a file that is open, before the curve is looked up, with laterality ("L", "R" or "") and view ("CC",
    "MLO", another code, or "") by the header; no other tag is given out."""
    with _quiet(path):
        tags = parse(path, file)
        side, view = _side_and_view(tags)
        return _stored(tags, modalities), side, view


def dicom_bits(path: Path) -> int:
    """Bits stored per pixel, 1 to 16. DataError where the header does not say."""
    require_file(path)
    with path.open("rb") as file, _quiet(path):
        return parse(path, file).whole("BitsStored", 1, 16)


def grey_depth(path: Path) -> int | None:
    """The bits whose whole range a file's grey values are scaled by; None where a window (or a VOI table) says what is
    black and white, and for colour.

    Files of one data set whose depths differ show the same value as different greys. DataError where the header does not
    say.
    """
    require_file(path)
    with path.open("rb") as file, _quiet(path):
        tags = parse(path, file)
        header = read_header(tags)
        return grey_bits(tags, header) if header.photometric in GREY else None


def _stored(tags: Tags, modalities: Collection[str], window: bool = True) -> Stored:
    header = read_header(tags, modalities)
    found = read_words(tags, header)
    values, empty = stored_values(tags, header, found)
    if header.samples == 3:
        values, curve = rgb(tags, header, values, found)
    elif header.photometric == PALETTE:
        curve = palette(tags, header)
    else:
        curve = grey_curve(tags, header, window)
    values -= header.lowest
    if empty.any():  # such values lie outside the stored bits, of which there are at most 15 then
        curve = np.concatenate([curve, np.zeros_like(curve[:1])])
        values[empty] = len(curve) - 1
    return Stored(values.astype(np.uint8 if len(curve) <= 256 else np.uint16), curve=curve)


def _side_and_view(tags: Tags) -> tuple[str, str]:
    """CBIS-DDSM writes the view into Patient Orientation."""
    side = tags.hint("ImageLaterality") or tags.hint("Laterality")
    view = tags.hint("ViewPosition")
    orientation = tags.hint("PatientOrientation")
    if not view and orientation in ("CC", "MLO"):
        view = orientation
    return (side[:1] if side in ("L", "R", "LEFT", "RIGHT") else "", view if view.isalpha() else "")


@contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Warnings and logs of the parser, which quote tags, are dropped; whatever it raises becomes one line."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # which its children inherit
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    except (DataError, MemoryError):
        raise
    except Exception:  # parser and decoders raise anything on damaged input
        raise DataError(
            f"{path} is damaged: its DICOM content cannot be decoded.",
            "Copy or download it again, or leave it out.",
        ) from None
    finally:
        logger.setLevel(level)
