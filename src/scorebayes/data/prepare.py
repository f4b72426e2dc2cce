"""Preparation: from the pixels of a file to the whole numbers a density is fitted to.

A ``Prepare`` is a named pipeline: any of ``STEPS`` at the size of the file, then an aspect-preserving resize
to a square, then steps at the final size, then quantisation. It is stored in the run and used again at
prediction; its ``fingerprint`` changes whenever its result can change. A new step is one function here and
one line in ``STEPS``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.exposure import equalize_adapthist
from skimage.filters import threshold_otsu

from scorebayes.errors import ConfigError, DataError

VERSION = 1
"""Increase it when the fixed part of the pipeline (checks, resize, quantisation) changes its result."""

MIN_SIDE = 8
MAX_ASPECT = 10.0
MIN_USED = 1e-3  # share of pixels that must differ from the darkest, and from the brightest
COLOUR_TOLERANCE = 2.5 / 255  # what lossy compression does to equal channels


@dataclass(frozen=True)
class View:
    """What a step works on: ``pixels`` [H, W] or [H, W, 3] float32 in [0, 1] and what the tables say of the
    image.
    """

    pixels: NDArray[np.float32]
    laterality: str = ""
    view: str = ""


@dataclass(frozen=True)
class Step:
    """One entry of ``STEPS``. ``final`` steps run after the resize, the others at the size of the file."""

    run: Callable[[View], View]
    version: int
    summary: str
    final: bool = False


def breast_mask(pixels: NDArray[np.float32], long_side: int = 256) -> tuple[NDArray[np.bool_], int]:
    """Where the breast is, found at reduced resolution: pixels [H, W] -> mask of pixels[::k, ::k], and k.

    Otsu's threshold of the square root (which spreads fat from air), largest connected piece (which leaves
    out labels and tape), holes filled. Raises DataError where nothing of at least 1 % of the image stands
    out.
    """
    stride = max(1, max(pixels.shape) // long_side)
    small = ndimage.gaussian_filter(np.sqrt(pixels[::stride, ::stride]), 1.0)
    mask = small > threshold_otsu(small)
    # A strip of scanner glare along an edge would otherwise tie label and breast together.
    pieces, count = ndimage.label(ndimage.binary_opening(mask, iterations=2))
    sizes = np.bincount(pieces.ravel(), minlength=2)[1:]
    if count == 0 or sizes.max() < 0.01 * mask.size:
        raise DataError(
            "No breast found: no region of at least 1 % of the image stands out from the background.",
            "Check that it is a mammogram, or leave out the steps that look for the breast.",
        )
    breast = ndimage.binary_dilation(pieces == 1 + int(sizes.argmax()), iterations=2) & mask
    return ndimage.binary_fill_holes(breast), stride


def _enlarge(mask: NDArray[np.bool_], stride: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return mask.repeat(stride, 0).repeat(stride, 1)[: shape[0], : shape[1]]


def _remove_background(view: View) -> View:
    mask, stride = breast_mask(view.pixels)
    return replace(
        view, pixels=view.pixels * _enlarge(ndimage.binary_dilation(mask), stride, view.pixels.shape)
    )


def _crop_breast(view: View) -> View:
    mask, stride = breast_mask(view.pixels)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    margin = 2
    top, left = (max(0, int(used[0]) - margin) * stride for used in (rows, columns))
    bottom, right = ((int(used[-1]) + 1 + margin) * stride for used in (rows, columns))
    return replace(view, pixels=view.pixels[top:bottom, left:right])


def _flip_right(view: View) -> View:
    if view.laterality not in ("L", "R"):
        raise DataError(
            f"The side of the breast is unknown (laterality {view.laterality!r}), so it cannot be flipped.",
            "Give it (L or R) in the table or the DICOM header, or leave out the step 'flip-right'.",
        )
    return replace(view, pixels=view.pixels[:, ::-1]) if view.laterality == "R" else view


def _remove_pectoral(view: View) -> View:
    """Black out the triangle above the straight edge of the greatest contrast in the upper chest-wall
    corner.
    """
    if view.view not in ("CC", "MLO"):
        raise DataError(
            f"The projection is unknown (view {view.view!r}), so the pectoral muscle cannot be located.",
            "Give it (CC or MLO) in the table or the DICOM header, or leave out the step 'remove-pectoral'.",
        )
    if view.view == "CC":
        return view
    mask, stride = breast_mask(view.pixels, long_side=64)
    small = ndimage.gaussian_filter(view.pixels[::stride, ::stride], 1.0)
    half = mask.shape[1] // 2
    chest_is_right = mask[:, half:].sum() > mask[:, :half].sum()
    if chest_is_right:
        small, mask = small[:, ::-1], mask[:, ::-1]
    columns = np.flatnonzero(mask.any(0))
    rows = np.flatnonzero(mask.any(1))
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
    y, x = np.mgrid[: small.shape[0], : small.shape[1]]
    contrast, line = 0.0, (1.0, 1.0)
    for across in np.linspace(0.2, 0.8, 13) * width:
        for down in np.linspace(0.2, 0.8, 13) * height:
            distance = (1 - (x - left) / across - (y - top) / down) / np.hypot(1 / across, 1 / down)
            inside = mask & (distance > 0) & (distance <= 3)
            outside = mask & (distance <= 0) & (distance > -3)
            if inside.sum() < 8 or outside.sum() < 8:
                continue
            step = float(small[inside].mean() - small[outside].mean())
            if step > contrast:
                contrast, line = step, (across, down)
    if contrast < 0.1 * float(small[mask].max()):
        return view  # no edge: the muscle is out of the field
    across, down = line
    blur = 1.5 * np.hypot(1 / across, 1 / down)  # the edge itself, as wide as the filter made it
    y, x = (np.arange(side) / stride for side in view.pixels.shape)
    breast = (x - left)[None, :] / across + (y - top)[:, None] / down > 1 + blur
    return replace(view, pixels=view.pixels * (breast[:, ::-1] if chest_is_right else breast))


def _robust_window(view: View) -> View:
    """Stretch the 0.5 % to 99.5 % quantiles of the pixels that are not black to [0, 1]."""
    stride = max(1, max(view.pixels.shape) // 512)
    sample = view.pixels[::stride, ::stride]
    low, high = np.quantile(sample[sample > 0], [0.005, 0.995])
    if high <= low:
        raise DataError(
            "All pixels that are not black have the same value.", "Check the file: it shows no tissue."
        )
    stretched = np.clip((view.pixels - np.float32(low)) / np.float32(high - low), 0, 1)
    return replace(view, pixels=stretched)


def _clahe(view: View) -> View:
    return replace(view, pixels=equalize_adapthist(view.pixels).astype(np.float32))


STEPS: dict[str, Step] = {
    "remove-background": Step(_remove_background, 1, "air, labels and tape around the breast become 0"),
    "crop-breast": Step(_crop_breast, 1, "the bounding box of the breast"),
    "flip-right": Step(
        _flip_right, 1, "right breasts are mirrored to look like left ones, by the table's side"
    ),
    "remove-pectoral": Step(_remove_pectoral, 1, "the pectoral muscle of MLO views becomes 0"),
    "robust-window": Step(
        _robust_window, 1, "0.5 % to 99.5 % of the tissue's grey values stretched to [0, 1]"
    ),
    "clahe": Step(_clahe, 1, "contrast-limited adaptive histogram equalisation (8 x 8 tiles)", final=True),
}

PIPELINES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "paper": ("clahe",),
    "mammogram": ("remove-background", "crop-breast", "flip-right", "robust-window"),
}
"""Named pipelines. Their names can be used in ``steps`` like the names of single steps."""


@dataclass(frozen=True)
class Prepare:
    """The pipeline: calling it turns pixels into whole numbers [channels, size, size] in [0, 2**bits).

    Parameters
    ----------
    size: side of the square, pixels. The longer side of the image is resized to it (triangle filter,
        antialiased), the shorter one padded with 0 evenly; an image that is already size x size keeps its
        pixels exactly.
    channels: 1 (grey) or 3 (RGB). Files with three equal channels count as grey. A colour image is refused
        where grey is asked for (it is an overlay or a photograph) and so is a grey one where RGB is asked for
        (three equal channels have no density).
    bits: depth of the result. Values are rounded to the nearest of 2**bits levels, so that pixels stored with
        ``bits`` bits come out as they were stored; the size of that step enters bits per dimension.
    steps: names in ``STEPS``, in the order in which they run, those at the final size last; a name in
        ``PIPELINES`` stands for its steps.
    """

    size: int
    channels: int = 1
    bits: int = 8
    steps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        steps = [step for name in self.steps for step in PIPELINES.get(name, (name,))]
        object.__setattr__(self, "steps", tuple(steps))
        for name, low, high in (("size", MIN_SIDE, 4096), ("bits", 1, 16)):
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(
                    f"prepare.{name} = {value!r}, expected a whole number from {low} to {high}."
                )
        if self.channels not in (1, 3):
            raise ConfigError(f"prepare.channels = {self.channels!r}, expected 1 (grey) or 3 (RGB).")
        for step in self.steps:
            if step not in STEPS:
                near = difflib.get_close_matches(step, [*STEPS, *PIPELINES], 1, 0.0)[0]
                raise ConfigError(f"prepare.steps: unknown step {step!r}.", f"Did you mean {near!r}?")
        if self.steps and self.channels != 1:
            raise ConfigError(
                f"prepare.steps {list(self.steps)} are for grey images.", "Set channels = 1 or steps = []."
            )
        final = [STEPS[step].final for step in self.steps]
        if final != sorted(final):
            raise ConfigError(
                f"prepare.steps {list(self.steps)}: a step at the final size comes before one at the file size.",
                "Put " + " and ".join(f"{step!r}" for step in self.steps if STEPS[step].final) + " last.",
            )

    def __call__(self, pixels: NDArray, laterality: str = "", view: str = "") -> NDArray[np.unsignedinteger]:
        """Pixels [H, W] or [H, W, 3], float in [0, 1], air = 0 -> [C, S, S] uint8 (bits <= 8) or uint16.

        ``laterality`` (L, R) and ``view`` (CC, MLO) are what the table or header says; the steps that need
        them refuse an image without. Raises DataError for pixels that are no usable image: blank, saturated,
        not finite, out of range, too small or too narrow.
        """
        seen = View(self._check(pixels), laterality, view)
        for name in self.steps:
            if not STEPS[name].final:
                seen = STEPS[name].run(seen)
        seen = replace(seen, pixels=_resize(seen.pixels, self.size))
        for name in self.steps:
            if STEPS[name].final:
                seen = STEPS[name].run(seen)
        levels = np.rint(seen.pixels * np.float32(2**self.bits - 1))
        levels = _pad(levels, self.size).astype(np.uint8 if self.bits <= 8 else np.uint16)
        return np.ascontiguousarray(levels[None] if self.channels == 1 else levels.transpose(2, 0, 1))

    def _check(self, pixels: NDArray) -> NDArray[np.float32]:
        pixels = np.asarray(pixels, dtype=np.float32)
        if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
            raise DataError(
                f"Pixels of shape {pixels.shape}, expected [H, W] or [H, W, 3].", "Give one image at a time."
            )
        short, long = sorted(pixels.shape[:2])
        if short < MIN_SIDE:
            raise DataError(
                f"The image is too small: {_size(pixels)}, but each side needs at least {MIN_SIDE}."
            )
        if long > MAX_ASPECT * short:
            raise DataError(f"The image is {_size(pixels)}: more than {MAX_ASPECT:g} times longer than wide.")
        low, high = float(pixels.min()), float(pixels.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DataError(
                "The image has pixels that are not finite (NaN or infinity).",
                "Repair the file or leave it out.",
            )
        if low < -1e-6 or high > 1 + 1e-6:
            raise DataError(
                f"Pixels from {low:g} to {high:g}, expected 0 to 1.", "Scale them by their bit depth first."
            )
        if low == high:
            raise DataError(f"The image is blank: all pixels are {low:g}.", "Check the file.")
        grey_level = (high - low) / 255
        for word, unlike in (("blank", pixels > low + grey_level), ("saturated", pixels < high - grey_level)):
            if np.count_nonzero(unlike) < MIN_USED * unlike.size:
                raise DataError(
                    f"The image is {word}: more than {1 - MIN_USED:.1%} of it has one grey value.",
                    "Check the file.",
                )
        return self._convert(np.clip(pixels, 0, 1) if low < 0 or high > 1 else pixels)

    def _convert(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        if pixels.ndim == 2:
            if self.channels == 3:
                raise DataError(
                    "The image is grey, but RGB is expected.",
                    "Give a colour image: grey is not copied to three channels.",
                )
            return pixels
        if self.channels == 3:
            return pixels
        if np.abs(pixels - pixels[..., :1]).max() > COLOUR_TOLERANCE:
            raise DataError(
                "The image is in colour (an overlay or a photograph), but grey is expected.",
                "Give the grey original image.",
            )
        return np.ascontiguousarray(pixels[..., 0])

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with every field and with the version of every step."""
        steps = [(step, STEPS[step].version) for step in self.steps]
        content = json.dumps([VERSION, self.size, self.channels, self.bits, steps])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """The section ``[prepare]`` of a resolved configuration; ``from_dict`` reads it back."""
        return {
            "size": self.size,
            "channels": self.channels,
            "bits": self.bits,
            "steps": list(self.steps),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> Prepare:
        """A pipeline from the section that ``to_dict`` or a user wrote.

        A ``fingerprint`` in the section must match the pipeline: ConfigError if this version of the
        program would prepare images differently from the version that wrote it. ConfigError for unknown keys.
        """
        fields = dict(section)
        fingerprint = fields.pop("fingerprint", None)
        known = ("size", "channels", "bits", "steps")
        for key in fields:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1, 0.0)[0]
                raise ConfigError(f"prepare.{key}: unknown key.", f"Did you mean {near!r}?")
        if "size" not in fields:
            raise ConfigError("prepare.size is missing.", "Give the side of the images in pixels.")
        prepare = cls(**fields)
        if fingerprint is not None and fingerprint != prepare.fingerprint:
            raise ConfigError(
                f"prepare.fingerprint is {fingerprint}, but this version of scorebayes has {prepare.fingerprint}.",
                "Use the version of scorebayes that wrote the configuration, or train again.",
            )
        return prepare


def _size(pixels: NDArray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]} pixels"


def _resize(pixels: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Longer side to ``size``, aspect kept to the nearest pixel. The triangle filter never overshoots."""
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest == size:
        return pixels
    target = tuple(max(1, round(side * size / longest)) for side in (width, height))
    planes = [pixels] if pixels.ndim == 2 else [pixels[..., channel] for channel in range(3)]
    resized = [
        # reducing_gap: whole blocks are averaged first, the filter sees at least three times the final size.
        np.asarray(
            Image.fromarray(np.ascontiguousarray(plane)).resize(target, Image.Resampling.BILINEAR, None, 3.0)
        )
        for plane in planes
    ]
    return np.clip(resized[0] if pixels.ndim == 2 else np.stack(resized, -1), 0, 1)


def _pad(pixels: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    before = [(size - side) // 2 for side in pixels.shape[:2]]
    widths = [(gap, size - side - gap) for gap, side in zip(before, pixels.shape[:2], strict=True)]
    return np.pad(pixels, widths + [(0, 0)] * (pixels.ndim - 2))
