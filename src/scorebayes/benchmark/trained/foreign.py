"""Foreign images, not from the data set: a trustworthy classifier declines to judge them.

``FOREIGN`` makes them from an image of the data set, so that size and, where it is said, grey values are its own;
``pictures`` reads images of other subjects: other MedMNIST sets, and the photographs that come with scikit-image.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from scorebayes.data.sources.medmnist import MedMnist

Image32 = NDArray[np.float32]
PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "moon.png", "page.png", "rocket.jpg", "text.png",
)  # fmt: skip
LEAST_CROP = 0.5  # of the shorter side of a photograph


def _shuffled(image: Image32, rng: np.random.Generator) -> Image32:
    return rng.permutation(image.ravel()).reshape(image.shape)


def _gaussian(image: Image32, rng: np.random.Generator) -> Image32:
    return np.clip(rng.normal(image.mean(), image.std(), image.shape), 0, 1).astype(np.float32)


def _gradient(image: Image32, rng: np.random.Generator) -> Image32:
    """From 0 to 1 along a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    ramp = np.cos(angle) * x + np.sin(angle) * y
    return ((ramp - ramp.min()) / np.ptp(ramp)).astype(np.float32)


def _checkerboard(image: Image32, rng: np.random.Generator) -> Image32:
    """Black and white squares, a side of the image holding two to seven of them."""
    side = max(1, min(image.shape) // int(rng.integers(2, 8)))
    y, x = np.indices(image.shape) // side
    return ((x + y + rng.integers(2)) % 2).astype(np.float32)


FOREIGN: dict[str, Callable[[Image32, np.random.Generator], Image32]] = {
    "black": lambda image, _: np.zeros_like(image),
    "white": lambda image, _: np.ones_like(image),
    "blank, some grey": lambda image, rng: np.full_like(image, rng.uniform(0.1, 0.9)),
    "inverted": lambda image, _: 1 - image,
    "uniform noise": lambda image, rng: rng.random(image.shape, dtype=np.float32),
    "Gaussian noise, own mean and variance": _gaussian,
    "pixels shuffled": _shuffled,
    "gradient": _gradient,
    "checkerboard": _checkerboard,
}
"""Name -> function of an image [H, W] float32 in [0, 1], which it does not change, and a generator."""


def pictures(root: Path, own: str, n: int, rng: np.random.Generator) -> dict[str, list[Image32]]:
    """``n`` images, [H, W] or [H, W, 3] float32 in [0, 1], of every subject that is at hand without a download.

    root: the data root; MedMNIST sets are looked for in ``root``/medmnist. own: name of the set left out.
    """
    found = {
        f"photographs ({len(PHOTOGRAPHS)} of scikit-image)": [_photograph(rng) for _ in range(n)],
    }
    for path in sorted(root.glob("medmnist/*.npz")):
        if path.stem != own:
            source = MedMnist(path)
            records = source.records()
            chosen = rng.choice(len(records), size=min(n, len(records)), replace=False)
            found[source.info.title] = [source.read(records[row]) for row in chosen]
    return found


def _photograph(rng: np.random.Generator) -> Image32:
    """A square cut at random from a photograph, grey."""
    folder = Path(skimage.data.__file__).parent
    with Image.open(folder / PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))]) as file:
        pixels = np.asarray(file.convert("L"), dtype=np.float32) / np.float32(255)
    side = int(min(pixels.shape) * rng.uniform(LEAST_CROP, 1))
    top, left = (int(rng.integers(length - side + 1)) for length in pixels.shape)
    return pixels[top : top + side, left : left + side]
