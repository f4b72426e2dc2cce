"""Masks: read, checked, and brought to the frame of the prepared images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scorebayes.data.base import MaskSource, Record, Rejected
from scorebayes.data.prepare import Prepare
from scorebayes.errors import ConfigError, DataError

MOVES = ("crop-breast", "flip-right")
"""Steps of the preparation after which a pixel is elsewhere, so that a mask would no longer fit."""


def binary(values: NDArray, name: str, *, objects: bool = False) -> NDArray[np.bool_]:
    """A mask from grey values [H, W] or [H, W, 3]: two values, of which 0 is outside. ``objects``: every number above 0 is
    an object of its own, and all of them are inside. DataError for anything else."""
    values = np.asarray(values)
    if values.ndim == 3:
        if values.shape[2] != 3 or (values != values[..., :1]).any():
            raise DataError(
                f"{name} is a colour picture, but a mask has one value a pixel.", "Save it as grey."
            )
        values = values[..., 0]
    found = np.unique(values)
    if not np.isfinite(found).all() or found[0] < 0:
        raise DataError(
            f"{name} has values that are negative or not finite.", "Expected 0 outside, and one more."
        )
    inside = found[found > 0]
    if len(inside) > 1 and not objects:
        raise DataError(
            f"{name} is no mask: it has {len(found)} different values, and two are expected.",
            "Save masks without lossy compression or smoothing. If each value is an object, use --option instances=true.",
        )
    return values > 0


def require_size(mask: NDArray, shape: Sequence[int], name: str) -> None:
    """DataError where a mask is not of the size of its image, given as [H, W, ...]."""
    if mask.shape != tuple(shape[:2]):
        raise DataError(
            f"{name} is {mask.shape[1]} x {mask.shape[0]} pixels, but its image is {shape[1]} x {shape[0]}.",
            "Give the mask of this image at its size.",
        )


def require_in_place(prepare: Prepare) -> None:
    """ConfigError where the preparation moves pixels."""
    moving = [step for step in prepare.steps if step in MOVES]
    if moving:
        raise ConfigError(
            f"[prepare] steps: {moving[0]!r} moves the pixels, and masks would no longer fit.",
            "Leave it out for segmentation.",
        )


ODDITIES = ("empty", "touching_the_edge", "tiny")
TINY = 9  # pixels, below which an outline says little


def oddities_of(mask: NDArray[np.bool_]) -> list[str]:
    """What is worth knowing of a mask, of ``ODDITIES``."""
    area = int(mask.sum())
    edge = bool(mask[[0, -1], :].any() or mask[:, [0, -1]].any())
    return [name for name, is_so in zip(ODDITIES, (area == 0, edge, 0 < area < TINY), strict=True) if is_so]


@dataclass(frozen=True)
class Frame:
    """How an image of height x width pixels lies in the square of a prepared one: its longer side fills it, and what is left
    over lies evenly on both sides, as ``Prepare`` does it."""

    height: int
    width: int
    size: int

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the image inside the square."""
        longest = max(self.height, self.width)
        return (
            max(1, round(self.height * self.size / longest)),
            max(1, round(self.width * self.size / longest)),
        )

    @property
    def pixels(self) -> float:
        """Pixels of the image in one pixel of the square."""
        height, width = self.inner
        return self.height * self.width / (height * width)

    def shrink(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask [height, width] in the square [size, size]: where at least half of a pixel is inside."""
        height, width = self.inner
        share = _resized(mask.astype(np.float32), height, width)
        out = np.zeros((self.size, self.size), dtype=bool)
        out[self._place] = share >= 0.5
        return out

    def restore(self, values: NDArray) -> NDArray[np.float32]:
        """A map [size, size] of the square as one of the image [height, width]."""
        return _resized(values[self._place].astype(np.float32), self.height, self.width)

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Which pixels of the square belong to the image [size, size]."""
        out = np.zeros((self.size, self.size), dtype=bool)
        out[self._place] = True
        return out

    @property
    def _place(self) -> tuple[slice, slice]:
        height, width = self.inner
        top, left = (self.size - height) // 2, (self.size - width) // 2
        return slice(top, top + height), slice(left, left + width)


def _resized(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    if values.shape == (height, width):
        return values
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(values)).resize((width, height), Image.Resampling.BILINEAR)
    )


def load_masks(
    source: MaskSource, records: Sequence[Record], size: int, progress: Callable[[int], None] | None = None
) -> tuple[NDArray[np.bool_], list[Frame], list[Rejected]]:
    """Masks [N, S, S] of the records that have a usable one, in order, their frames [N], and the others with the reason.
    progress: called with the number of those that are done."""
    masks, frames, rejected = [], [], []
    for done, record in enumerate(records):
        if progress is not None:
            progress(done)
        try:
            mask = source.mask(record)
        except DataError as error:
            rejected.append(Rejected(record.image_id, str(record.path), str(error)))
            continue
        frame = Frame(mask.shape[0], mask.shape[1], size)
        masks.append(frame.shrink(mask))
        frames.append(frame)
    stacked = np.stack(masks) if masks else np.zeros((0, size, size), dtype=bool)
    return stacked, frames, rejected
