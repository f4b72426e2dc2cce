"""What every reader of pictures needs around a decoder: a limit on the size, one error for all complaints, orientation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from scorebayes.errors import DataError

MAX_PIXELS = 100_000_000
_AGAIN = "Copy or download it again, or leave it out."


@contextmanager
def decoding(path: Path, problem: str = "cannot be decoded") -> Iterator[None]:
    """Turn what decoders raise into a DataError, but for MemoryError. Their warnings (of size, of odd tags) are left out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.DecompressionBombError:
        raise DataError(
            f"{path} has more than {MAX_PIXELS / 1e6:.0f} million pixels.", "Reduce it."
        ) from None
    except UnidentifiedImageError:
        raise DataError(f"{path} {problem}: its header is damaged.", _AGAIN) from None
    except (DataError, MemoryError):
        raise
    except Exception as error:  # no list of what decoders raise on broken files has ever been complete
        cause = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise DataError(f"{path} {problem}: {cause}.", _AGAIN) from error


def check_size(path: Path, n_pixels: int) -> None:
    """DataError if an image has more pixels than are read. Call it before anything is decoded."""
    if n_pixels > MAX_PIXELS:
        raise DataError(
            f"{path} has {n_pixels / 1e6:.0f} million pixels, but at most {MAX_PIXELS / 1e6:.0f} million are read.",
            "Reduce it.",
        )


def upright(pixels: NDArray, orientation: int) -> NDArray:
    """Pixels [H, W, ...] turned as the tag Orientation of TIFF and EXIF says (1 to 8; others say nothing)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels) if 2 <= orientation <= 8 else pixels
