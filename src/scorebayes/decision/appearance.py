"""Appearance: does an image look, in a few dozen plain statistics, like the images of the data set?

The denoising errors (see ``scorebayes.decision.typicality``) say whether the network finds an image as easy as those it
knows. A smooth photograph and an inverted image may well be as easy. What gives them away is plain: where it is bright, how
much detail it has at every scale, and the sign of that detail, since speckle grows with brightness and film grain does not.
A Gaussian with a shrunk covariance is fitted to such statistics; the Mahalanobis distance (Lee et al. 2018, arXiv
1807.03888, there of network features) is two-sided by nature: an image that is too smooth is as far away as one too rough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scorebayes.decision.folds import held_out
from scorebayes.errors import ConfigError, DataError

Array = NDArray[np.float64]

LEAST_IMAGES = 20
MOST_IMAGES = 5000  # drawn at random from more: what is fitted are a few dozen numbers and their covariance
FOLDS = 5
_STEP = 1 / 255  # grey level below which detail is nothing
_SCALES = 5
_LEAST_SIDE = 4  # pixels at the coarsest scale
_LAGS = (1, 2, 3, 5, 8)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_FAR = 20.0  # standard deviations beyond which more makes no difference
_RIDGE = (
    0.3  # added to the correlations: directions in which the images hardly vary would decide alone otherwise
)
_PART = 256


def statistics(images: NDArray) -> Array:
    """Images [N, C, S, S] in [0, 1] -> statistics [N, F]; their number depends on C and S alone."""
    parts = [images[first : first + _PART] for first in range(0, len(images), _PART)]
    return np.concatenate(
        [np.concatenate([_of_channel(part[:, c]) for c in range(part.shape[1])], axis=1) for part in parts]
    )


def _of_channel(x: NDArray) -> Array:
    """One channel [N, S, S] -> [N, F]: layout, grey values, roughness over distance, and detail at every scale."""
    x = np.asarray(x, dtype=np.float64)
    flat = x.reshape(len(x), -1)
    found = [
        _cells(x, 4),
        np.quantile(flat, _QUANTILES, axis=1).T,
        _log(_cells(np.square(_laplacian(x)), 3)),
        *(_log(_mean(np.square(x[:, lag:] - x[:, :-lag])))[:, None] for lag in _LAGS if lag < x.shape[1]),
        *(_log(_mean(np.square(x[..., lag:] - x[..., :-lag])))[:, None] for lag in _LAGS if lag < x.shape[2]),
    ]
    for _ in range(_SCALES):
        if x.shape[1] < _LEAST_SIDE:
            break
        detail, x = _detail(x)
        found.append(detail)
    return np.concatenate(found, axis=1)


def _detail(x: Array) -> tuple[Array, Array]:
    """Detail of [N, S, S] at its finest scale, [N, 6], and the image at half the size.

    Energy across, down and diagonal (Haar); skewness and peakedness of the Laplacian; correlation of brightness and detail.
    """
    curvature = _laplacian(x)
    power = _mean(np.square(curvature))
    skewness = _mean(curvature**3) / (power**1.5 + _STEP**3)
    peakedness = np.log(_mean(curvature**4) / (np.square(power) + _STEP**4) + 0.1)
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    a, b, c, d = x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]
    half = (a + b + c + d) / 4
    across, down, diagonal = (a - b + c - d) / 4, (a + b - c - d) / 4, (a - b - c + d) / 4
    amplitude = np.sqrt(np.square(across) + np.square(down) + np.square(diagonal))
    energies = [_log(_mean(np.square(part))) for part in (across, down, diagonal)]
    return np.stack([*energies, np.tanh(skewness), peakedness, _correlation(amplitude, half)], axis=1), half


def _laplacian(x: Array) -> Array:
    """Inside the border."""
    inner = x[:, 1:-1, 1:-1]
    return inner - 0.25 * (x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:])


def _cells(x: Array, n: int) -> Array:
    """Means over n x n cells, [N, n * n]."""
    edges = np.linspace(0, x.shape[1], n + 1).astype(int)[:-1]
    edges = np.minimum(edges, x.shape[1] - 1)
    sums = np.add.reduceat(np.add.reduceat(x, edges, axis=1), edges, axis=2)
    lengths = np.diff(np.r_[edges, x.shape[1]]).clip(1)
    return (sums / np.outer(lengths, lengths)).reshape(len(x), -1)


def _mean(x: Array) -> Array:
    return x.mean(axis=(1, 2))


def _log(power: Array) -> Array:
    return 0.5 * np.log(power + _STEP**2 / 16)


def _correlation(a: Array, b: Array) -> Array:
    a, b = (v - v.mean(axis=(1, 2), keepdims=True) for v in (a, b))
    return _mean(a * b) / (np.sqrt(_mean(np.square(a)) * _mean(np.square(b))) + _STEP**2)


@dataclass(frozen=True)
class Appearance:
    """What the images of a data set look like.

    mean, scale: [F], of the statistics. precision: [F, F], inverse of their correlations, shrunk. threshold: distance
    beyond which an image looks unlike them. n: images it was fitted on.
    """

    mean: Array
    scale: Array
    precision: Array
    threshold: float
    n: int

    def distance(self, images: NDArray) -> Array:
        """Mahalanobis distance over the square root of F, [N]: near 1 for images of the data set.

        images [N, C, S, S] in [0, 1]. ConfigError where they are of another size than those it was fitted on.
        """
        found = statistics(images)
        if found.shape[1] != len(self.mean):
            raise ConfigError(
                f"the images have shape {images.shape[1:]}, but appearance was fitted on another size or channel count.",
                "Prepare the images as in the run.",
            )
        return self._of(found)

    def with_threshold_of(self, images: NDArray, share: float) -> Appearance:
        """The same look, and the threshold beyond which about ``share`` of images like these, which it was not fitted on,
        will be."""
        return replace(self, threshold=conformal_threshold(self.distance(images), share), n=len(images))

    def _of(self, found: Array) -> Array:
        z = np.clip((found - self.mean) / self.scale, -_FAR, _FAR)
        return np.sqrt(np.einsum("nf,fg,ng->n", z, self.precision, z) / z.shape[1])

    @staticmethod
    def from_dict(stored: dict) -> Appearance:
        """From ``dataclasses.asdict``, also through JSON."""
        arrays = {key: np.asarray(stored[key], dtype=np.float64) for key in ("mean", "scale", "precision")}
        return Appearance(**{**stored, **arrays})


def conformal_threshold(distances: Array, share: float) -> float:
    """The distance that about ``share`` of further images will exceed, from those of images that were not fitted on [N]
    (Vovk et al. 2005, Algorithmic Learning in a Random World, section 2.2)."""
    rank = min(len(distances), int(np.ceil((len(distances) + 1) * (1 - share))))
    return float(np.sort(distances)[rank - 1])


def fit_appearance(images: NDArray, share: float, seed: int = 0, patients: Sequence = ()) -> Appearance:
    """Learn what images look like; about ``share`` of others like them will be beyond the threshold.

    images [N, C, S, S] in [0, 1], of training and validation. patients [N]: by default each image is one. The threshold is
    the conformal quantile of the distances of patients held out in turn. DataError where there are fewer than 20 images.
    """
    if len(images) < LEAST_IMAGES:
        raise DataError(
            f"there are only {len(images)} images, but at least {LEAST_IMAGES} are needed to fit their appearance.",
            "Give more data.",
        )
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:MOST_IMAGES])
    found, n = statistics(images[rows]), len(rows)
    whose = [patients[row] for row in rows] if len(patients) else range(n)
    distances = np.empty(n)
    for part in held_out(whose, FOLDS, seed):
        others = np.setdiff1d(np.arange(n), part)
        distances[part] = _fit(found[others], np.inf)._of(found[part])
    return _fit(found, conformal_threshold(distances, share))


def _fit(found: Array, threshold: float) -> Appearance:
    mean, scale = found.mean(axis=0), np.maximum(found.std(axis=0), 1e-3)
    correlation = np.cov((found - mean) / scale, rowvar=False)
    precision: Array = np.linalg.inv(correlation + _RIDGE * np.eye(len(mean))).astype(np.float64)
    return Appearance(mean, scale, precision, threshold, len(found))
