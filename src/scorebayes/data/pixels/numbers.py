"""From stored numbers to float32 in [0, 1], and from an array's axes to one image or a stack of images.

A number means the same in every image of a data set: no rule here looks at the greatest value of an image to choose a
scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorebayes.errors import DataError

ROUNDING = 1e-6  # how far outside [0, 1] floating-point numbers may be by rounding
_LEAST_SPAN = (
    2**-10
)  # of the range of 32-bit numbers; below it, an image would not keep its 64 grey levels in 16 bits


@dataclass(frozen=True)
class Stored:
    """Numbers [H, W] or [H, W, 3] as a file holds them, with what they mean: a ``curve`` [n] or [n, 3] that gives the grey
    or colour of each, or else the ``depth`` and ``white_is_zero`` of ``to_unit``."""

    values: NDArray
    depth: int | None = None
    white_is_zero: bool = False
    curve: NDArray[np.float32] | None = None

    def unit(self, name: Path | str, bits: int | None = None) -> NDArray[np.float32]:
        """Pixels [H, W] or [H, W, 3], float32 in [0, 1]; ``name`` and ``bits`` as in ``to_unit``."""
        if self.curve is not None:
            return self.curve[self.values]
        return to_unit(self.values, name, bits, depth=self.depth, white_is_zero=self.white_is_zero)


def to_unit(
    values: NDArray,
    name: Path | str,
    bits: int | None = None,
    *,
    depth: int | None = None,
    white_is_zero: bool = False,
) -> NDArray[np.float32]:
    """Stored numbers to float32 in [0, 1]. DataError, which calls them ``name``, for what cannot be scaled for certain.

    Truth values become 0 and 1. Unsigned numbers are divided by the greatest of their depth, signed ones are mapped from
    their least to their greatest (-128 -> 0, 127 -> 1). Floating-point numbers must lie in [0, 1] already, but for rounding.

    ``bits`` is the true depth of numbers of 0 or more that are stored in more than 8 bits. ``depth``: bits per number as
    the file declares them. Without it, the type counts for int8, uint8 and uint16, and other whole numbers need ``bits``:
    programs turn images into int64 for reasons that have nothing to do with their depth.
    """
    kind, itemsize = values.dtype.kind, values.dtype.itemsize
    if not values.size:
        raise DataError(f"{name} has no pixels.", "Leave it out.")
    if kind == "b":
        unit = values.astype(np.float32)
        return 1 - unit if white_is_zero else unit
    if kind == "f":
        unit = _between_0_and_1(values, name)
        return 1 - unit if white_is_zero else unit
    if kind not in "iu":
        raise DataError(
            f"{name} holds {described(values.dtype)}, not grey values.",
            "Save numbers: uint8, uint16, or float in [0, 1].",
        )
    if depth is None:
        if bits is None and (kind, itemsize) not in (("u", 1), ("i", 1), ("u", 2)):
            raise DataError(
                f"{name} holds {values.dtype.name} numbers, which do not tell how many bits white has.",
                "Save them as uint8, uint16, or float in [0, 1], or give the option bits of the data.",
            )
        depth = 8 * itemsize
    least, span = (-(2 ** (depth - 1)) if kind == "i" else 0), 2**depth - 1
    if depth < 8 * itemsize and (int(values.max()) > least + span or int(values.min()) < least):
        raise DataError(
            f"{name} has values from {values.min()} to {values.max()}, but says that they have {depth} bits.",
            "Copy it again, or correct its header.",
        )
    if depth > 8 and bits is not None and bits < depth:
        _check_range(values, name, bits)
        least, span = 0, 2**bits - 1
    elif depth > 16 and int(values.max()) - int(values.min()) < _LEAST_SPAN * span:
        raise DataError(
            f"{name} uses only the values {values.min()} to {values.max()} of {depth} bits.",
            "Save it with 16 bits, or give the option bits of the data.",
        )
    exact: NDArray = values.astype(np.float32 if depth <= 16 else np.float64)
    if least:
        exact -= least
    if white_is_zero:
        np.subtract(span, exact, out=exact)
    exact /= span
    return exact.astype(np.float32, copy=False)


def unsigned(values: NDArray, name: str, bits: int | None = None) -> NDArray:
    """All images of a data set, so that ``to_unit`` knows their depth: int16, int32, int64, uint32 and uint64 become uint8
    where no number is above 255, else uint16. Other types are returned as they are.

    ``bits``: the depth where it is known, for example from the images that a model was trained on.
    """
    if values.dtype.kind not in "iu" or values.dtype.itemsize == 1 or values.dtype == np.uint16:
        return values
    depth = bits or (8 if values.max(initial=0) <= 255 else 16)
    _check_range(values, name, depth)
    return values.astype(np.uint8 if depth <= 8 else np.uint16)


def _check_range(values: NDArray, name: Path | str, bits: int) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0:
        raise DataError(
            f"{name} has values from {low} to {high}.",
            "Scale all images alike to [0, 1] (Hounsfield units: choose a window).",
        )
    if high > 2**bits - 1:
        raise DataError(
            f"{name} has grey value {high}, which needs more than {bits} bits.",
            "Give all images the same depth, or increase the option bits.",
        )


def _between_0_and_1(values: NDArray, name: Path | str) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise DataError(f"{name} holds NaN or infinite values.", "Repair the image or leave it out.")
    low, high = float(values.min()), float(values.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise DataError(
            f"{name} has values from {low:.7g} to {high:.7g}.", "Scale all images alike to [0, 1]."
        )
    return np.clip(values, 0, 1).astype(np.float32) if low < 0 or high > 1 else values.astype(np.float32)


def described(dtype: np.dtype) -> str:
    """A type that holds no grey values, in words."""
    if dtype.names:
        return f"records with the fields {', '.join(dtype.names)}"
    kinds = {
        "c": "complex numbers",
        "O": "Python objects",
        "U": "text",
        "S": "text",
        "M": "dates",
        "m": "durations",
    }
    return kinds.get(dtype.kind, f"data of type {dtype}")


def as_image(array: NDArray, name: Path | str) -> NDArray:
    """One image as [H, W] or [H, W, 3]: from these, [H, W, 1], [H, W, 4] (alpha is dropped), [1, H, W], [3, H, W], and any
    of them with a first axis of one more. DataError for other shapes and where two readings are possible.
    """
    image = array[0] if array.ndim == 4 and array.shape[0] == 1 else array
    first, last = (
        image.ndim == 3 and image.shape[axis] in sizes for axis, sizes in ((0, (1, 3)), (2, (1, 3, 4)))
    )
    if image.size == 0 or (first == last if image.ndim == 3 else image.ndim != 2):
        raise DataError(f"{name} has shape {array.shape}.", "Expected one image, (H, W) or (H, W, 3).")
    if first:
        image = np.moveaxis(image, 0, 2)
    if image.ndim == 3:
        image = image[..., 0] if image.shape[2] == 1 else image[..., :3]
    return image


def is_stack(images: NDArray) -> bool:
    """Whether an array has the shape of many images, [N, H, W] (grey) or [N, H, W, 3] (RGB)."""
    return images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)


def as_stack(images: NDArray, name: str, *, or_one: bool = False) -> NDArray:
    """Many images as [N, H, W] or [N, H, W, 3]: from these, [N, 1, H, W], [N, H, W, 1] and [N, 3, H, W]. Three axes are
    N, H, W. DataError for other shapes and where two readings are possible.

    ``or_one``: a single image, [H, W], [H, W, 1] or [H, W, 3], is a stack of one.
    """
    if or_one and (images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (1, 3))):
        images = images[None]
    first, last = (images.ndim == 4 and images.shape[axis] in (1, 3) for axis in (1, 3))
    stack = np.moveaxis(images, 1, 3) if first else images
    if stack.ndim == 4 and stack.shape[3] == 1:
        stack = stack[..., 0]
    if (first and last) or not is_stack(stack) or not stack.size:
        raise DataError(
            f"{name} is {images.dtype} {images.shape}.",
            "Expected images, (N, H, W) or (N, H, W, 3); (N, 1, H, W), (N, H, W, 1) and (N, 3, H, W) will do.",
        )
    return stack
