"""Overlays: an image with the outline of its mask and of what was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

TRUE, FOUND = (60, 200, 80), (235, 60, 60)
SIDE = 256


def overlay(pixels: NDArray[np.float32], mask: NDArray[np.bool_], found: NDArray[np.bool_]) -> Image.Image:
    """Pixels [C, S, S] in [0, 1] with the true outline in green and the found one in red."""
    levels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    rgb = np.repeat(levels, 3, axis=0) if len(levels) == 1 else levels
    factor = max(1, SIDE // rgb.shape[-1])
    large = np.ascontiguousarray(rgb.transpose(1, 2, 0).repeat(factor, 0).repeat(factor, 1))
    for shape, colour in ((mask, TRUE), (found, FOUND)):
        area = shape.repeat(factor, 0).repeat(factor, 1)
        large[area & ~ndimage.binary_erosion(area, iterations=2)] = colour
    return Image.fromarray(large)


def save_cases(
    folder: Path,
    dice: NDArray[np.float64],
    pixels: NDArray[np.float32],
    masks: NDArray[np.bool_],
    found: NDArray[np.bool_],
) -> dict[str, int]:
    """Write best, median and worst of the images with an object; returns their rows. dice [N], NaN for the others."""
    order = np.argsort(dice)[: int((~np.isnan(dice)).sum())]
    if not len(order):
        return {}
    folder.mkdir(exist_ok=True)
    chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    for name, row in chosen.items():
        overlay(pixels[row], masks[row], found[row]).save(folder / f"{name}.png")
    return {name: int(row) for name, row in chosen.items()}
