"""Corruptions of mammography and ultrasound: what goes wrong in acquisition, storage and export, at five severities.

After Hendrycks & Dietterich 2019 (arXiv 1903.12261), with kinds and ranges for X-ray and ultrasound. Every strength is a
constant below, written per severity 1 to 5: the first is barely seen, the last is what nobody would read. Lengths are
shares of the image's side, so that they mean the same at 28 pixels and at 1024.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from scorebayes.errors import ConfigError

Pixels = NDArray[np.float32]
Five = tuple[float, float, float, float, float]

SEVERITIES = (1, 2, 3, 4, 5)

QUANTA: Five = (400, 150, 60, 25, 10)  # photons at full scale: a standard deviation of 5 % to 32 % there
ELECTRONIC: Five = (0.02, 0.04, 0.08, 0.14, 0.22)  # standard deviation, of full scale
SPECKLE: Five = (0.08, 0.15, 0.25, 0.4, 0.6)  # standard deviation of the factor
MOTION: Five = (0.07, 0.12, 0.18, 0.26, 0.36)  # length of the path, of the side
DEFOCUS: Five = (0.015, 0.025, 0.04, 0.06, 0.09)  # standard deviation of the blur, of the side
GAMMA: Five = (1.2, 1.45, 1.8, 2.3, 3.0)  # exponent, or one over it
EXPOSURE: Five = (0.06, 0.12, 0.2, 0.3, 0.42)  # added or taken off, of full scale
JPEG: Five = (60, 35, 20, 10, 4)  # quality
RESOLUTION: Five = (0.75, 0.55, 0.4, 0.28, 0.18)  # side at which the image was stored, of its own
SHADOW: Five = (0.3, 0.45, 0.6, 0.75, 0.9)  # of the light lost behind the reflector
POSITION: Five = (4, 8, 13, 19, 26)  # degrees; the shift is a hundredth of the side for every two of them
MARKER: Five = (0.12, 0.18, 0.25, 0.33, 0.42)  # side of the label, of the image's


def _sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _quantum_noise(image: Pixels, quanta: float, rng: np.random.Generator) -> NDArray:
    """Photon noise. Normal, of the Poisson's variance: one draw per pixel serves all severities."""
    return image + np.sqrt(image / quanta) * rng.standard_normal(image.shape)


def _electronic_noise(image: Pixels, deviation: float, rng: np.random.Generator) -> NDArray:
    return image + deviation * rng.standard_normal(image.shape)


def _speckle(image: Pixels, deviation: float, rng: np.random.Generator) -> NDArray:
    """Multiplicative, correlated along the beam as resolution cells are."""
    grain = ndimage.gaussian_filter1d(rng.standard_normal(image.shape), 0.6, axis=1)
    return image * (1 + deviation * grain / grain.std())


def _motion(image: Pixels, length: float, rng: np.random.Generator) -> NDArray:
    """The mean over a straight path in a random direction."""
    angle, side = rng.uniform(0, np.pi), max(image.shape)
    steps = np.linspace(-0.5, 0.5, 2 * int(np.ceil(length * side)) + 3) * length * side
    moved = [
        ndimage.shift(image, (s * np.sin(angle), s * np.cos(angle)), order=1, mode="nearest") for s in steps
    ]
    return np.mean(moved, axis=0)


def _defocus(image: Pixels, width: float, rng: np.random.Generator) -> NDArray:
    return ndimage.gaussian_filter(image, width * max(image.shape), mode="nearest")


def _contrast(image: Pixels, gamma: float, rng: np.random.Generator) -> NDArray:
    return image ** (gamma if rng.random() < 0.5 else 1 / gamma)


def _exposure(image: Pixels, shift: float, rng: np.random.Generator) -> NDArray:
    return image + _sign(rng) * shift


def _jpeg(image: Pixels, quality: float, rng: np.random.Generator) -> NDArray:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(buffer, "JPEG", quality=int(quality))
    with Image.open(buffer) as stored:
        return np.asarray(stored, dtype=np.float32) / 255


def _resolution(image: Pixels, share: float, rng: np.random.Generator) -> NDArray:
    height, width = image.shape
    small = (max(2, round(share * width)), max(2, round(share * height)))
    stored = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    return np.asarray(stored.resize((width, height), Image.Resampling.BILINEAR))


def _shadow(image: Pixels, loss: float, rng: np.random.Generator) -> NDArray:
    """Acoustic shadow: from some depth down, a strip with soft edges loses its light."""
    height, width = image.shape
    y, x = np.mgrid[:height, :width] / max(height, width)
    centre, half = rng.uniform(0.25, 0.75), rng.uniform(0.12, 0.2)
    depth = rng.uniform(0.1, 0.35)
    strip = 1 / (1 + np.exp((np.abs(x - centre) - half) / 0.03))
    return image * (1 - loss * strip / (1 + np.exp((depth - y) / 0.03)))


def _position(image: Pixels, degrees: float, rng: np.random.Generator) -> NDArray:
    """Turned and shifted; what comes in from outside is black."""
    angle = np.deg2rad(_sign(rng) * degrees)
    towards = rng.uniform(0, 2 * np.pi)
    shift = 0.005 * degrees * max(image.shape) * np.array([np.sin(towards), np.cos(towards)])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = (np.array(image.shape) - 1) / 2
    return ndimage.affine_transform(image, turn, centre - turn @ (centre + shift), order=1, mode="constant")


def _marker(image: Pixels, share: float, rng: np.random.Generator) -> NDArray:
    """A burnt-in label: a black box with a bright frame and bars where letters would be."""
    height, width = image.shape
    top, left = rng.random(2)
    h, w = max(3, round(0.6 * share * height)), max(3, round(share * width))
    y, x = int(top * (height - h)), int(left * (width - w))
    label = np.zeros((h, w))
    label[[0, -1]], label[:, [0, -1]] = 1, 1
    label[1:-1, 1:-1] = (np.arange(1, w - 1) // max(1, w // 8)) % 2
    marked = image.copy()
    marked[y : y + h, x : x + w] = label
    return marked


def _kind(
    corrupt: Callable[[Pixels, float, np.random.Generator], NDArray], strengths: Five
) -> Callable[[Pixels, int, np.random.Generator], Pixels]:
    def corrupted(image: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
        if severity not in SEVERITIES:
            raise ConfigError(f"severity {severity!r}: expected a whole number from 1 to 5.")
        return np.clip(corrupt(image, strengths[severity - 1], rng), 0, 1).astype(image.dtype)

    return corrupted


CORRUPTIONS: dict[str, Callable[[Pixels, int, np.random.Generator], Pixels]] = {
    "quantum noise": _kind(_quantum_noise, QUANTA),
    "electronic noise": _kind(_electronic_noise, ELECTRONIC),
    "speckle": _kind(_speckle, SPECKLE),
    "motion": _kind(_motion, MOTION),
    "defocus": _kind(_defocus, DEFOCUS),
    "contrast": _kind(_contrast, GAMMA),
    "exposure": _kind(_exposure, EXPOSURE),
    "JPEG": _kind(_jpeg, JPEG),
    "resolution": _kind(_resolution, RESOLUTION),
    "acoustic shadow": _kind(_shadow, SHADOW),
    "position": _kind(_position, POSITION),
    "marker": _kind(_marker, MARKER),
}
"""Name -> function of an image [H, W] float32 in [0, 1], a severity from 1 to 5 and a generator.

The image is not changed. The result has its shape and type and is in [0, 1]. The same state of the generator gives the
same noise, place and direction at every severity. Channels of one image are given the same state.
"""
