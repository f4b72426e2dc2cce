"""Class-conditional Gaussians of wavelet coefficients: a score model in closed form, beside the learned one of the pixels.

The features of an image (``scattering``) are noised as by a forward process; given the class they are Gaussian, with the
class's mean and one covariance for all. Then the score is linear and nothing has to be trained: what classes say of an image
differs by a linear function of its features. The covariance is learned without labels, from all training images, and the
noise takes the place of what few images cannot tell of it. How much, and how sure of itself the result may be, is found by
cross-validation within the training images, for each of several grids; the log-likelihoods of the grids are averaged, since
they see the same image (docs/decisions/0017).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from scorebayes.checkpoint import write_atomically
from scorebayes.errors import ConfigError
from scorebayes.scattering import FINEST, on_grid, scattering

GRIDS = (1, 2, FINEST)  # cells along a side
NOISES = (0.03, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95)  # shares of the noised features' variance
TEMPERATURES = np.geomspace(0.001, 3.0, 30)
FOLDS = 5
MOST_IMAGES = 4000
"""As many images are learned from, at most, of all classes alike as far as they go: more change little and cost much."""


@dataclass(frozen=True)
class WaveletGaussians:
    """slopes: per grid [Y, F], offsets: [Y], such that log p(features | y) is ``sum over grids of slopes @ features``, plus
    the offset, plus what does not depend on the class. mirrored: an image and its mirror image are one. seconds: spent on
    learning."""

    slopes: Mapping[int, Tensor]
    offsets: Tensor
    mirrored: bool
    seconds: float = 0.0

    def __call__(self, coefficients: Tensor) -> Tensor:
        """``scattering`` [N, C, P, 4, 4] -> log-likelihoods [N, Y] in nats, float64, less what is alike for all classes."""
        found = sum(
            on_grid(coefficients, grid, self.mirrored) @ slope.T for grid, slope in self.slopes.items()
        )
        found = found + self.offsets
        return found - found.mean(dim=1, keepdim=True)

    def of_images(self, x: Tensor) -> Tensor:
        """The same of standardised images [N, C, S, S]; the gradient passes through."""
        return self(scattering(x))

    @property
    def fingerprint(self) -> str:
        """Of the numbers that count."""
        return hashlib.sha256(safetensors.torch.save(self._arrays())).hexdigest()

    def save(self, path: Path) -> None:
        """As safetensors."""
        seconds = torch.tensor(self.seconds, dtype=torch.float64)
        write_atomically(path, safetensors.torch.save({**self._arrays(), "seconds": seconds}))

    def _arrays(self) -> dict[str, Tensor]:
        arrays = {f"slopes.{grid}": slope for grid, slope in self.slopes.items()}
        return {**arrays, "offsets": self.offsets, "mirrored": torch.tensor(self.mirrored)}

    @staticmethod
    def load(path: Path) -> WaveletGaussians:
        """The inverse of ``save``. ConfigError where the file is damaged."""
        try:
            arrays = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ConfigError(
                f"{path}: damaged ({error}).",
                "Delete it and finish the run again with 'scorebayes train --resume'.",
            ) from error
        slopes = {grid: arrays[f"slopes.{grid}"] for grid in GRIDS}
        return WaveletGaussians(slopes, arrays["offsets"], bool(arrays["mirrored"]), float(arrays["seconds"]))


def fit_wavelets(
    coefficients: Tensor, labels: NDArray[np.int64], *, mirrored: bool, seed: int
) -> WaveletGaussians:
    """Learn from training images: coefficients [N, C, P, 4, 4] of ``scattering``, labels [N], -1 where unknown; every class
    is there. Unlabelled images enter the covariance."""
    slopes, offsets = {}, torch.zeros(int(labels.max()) + 1, dtype=torch.float64)
    for grid in GRIDS:
        features = on_grid(coefficients, grid, mirrored).numpy()
        slope, offset = _fit(features, labels, seed)
        slopes[grid] = torch.from_numpy(slope / len(GRIDS))
        offsets += torch.from_numpy(offset / len(GRIDS))
    return WaveletGaussians(slopes, offsets, mirrored)


def some_of_all_classes(labels: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Rows of at most ``most`` images: equally many of every class, as far as they go; unlabelled ones count as a class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        place[rows] = np.arange(len(rows))
    return np.sort(order[np.argsort(place[order], kind="stable")[:most]])


class _Basis(NamedTuple):
    """Principal axes of the features [F, R] about their mean [F], their variances [R], and the mean variance of all F."""

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    variances: NDArray[np.float64]
    level: float


def _fit(features: NDArray, labels: NDArray[np.int64], seed: int) -> tuple[NDArray, NDArray]:
    """Slopes [Y, F] and offsets [Y] of one grid, at the noise and temperature of the lowest held-out log-loss."""
    basis = _basis(features)
    known = labels >= 0
    z, y = (features[known] - basis.mean) @ basis.axes, labels[known]
    noise, temperature = _choose(basis, z, y, seed)
    precision, means = _precision(basis, noise), _means(z, y)
    slopes = temperature * (means * precision) @ basis.axes.T
    offsets = -0.5 * temperature * (means**2 @ precision) - slopes @ basis.mean
    return slopes, offsets


def _basis(features: NDArray) -> _Basis:
    mean = features.mean(axis=0)
    centred = features - mean
    wide = features.shape[0] < features.shape[1]
    values, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    keep = values > 1e-7 * max(values[-1], 1e-12)
    values, vectors = values[keep], vectors[:, keep]
    axes = centred.T @ vectors / np.sqrt(values) if wide else vectors
    return _Basis(mean, axes, values / len(features), float(values.sum() / centred.size))


def _precision(basis: _Basis, noise: float) -> NDArray:
    """Of the noised features along the axes [R]; the noise has the mean variance of the features."""
    return 1 / (noise * basis.level + (1 - noise) * basis.variances)


def _means(z: NDArray, y: NDArray) -> NDArray:
    return np.stack([z[y == label].mean(axis=0) for label in range(y.max() + 1)])


def _choose(basis: _Basis, z: NDArray, y: NDArray, seed: int) -> tuple[float, float]:
    """Noise and temperature of the lowest log-loss on held-out training images, all classes counted alike."""
    counts = np.bincount(y)
    if counts.min() < 2:  # nothing can be held out
        return NOISES[-1], 1 / len(basis.mean)
    parts = StratifiedKFold(min(FOLDS, int(counts.min())), shuffle=True, random_state=seed).split(z, y)
    held_out = np.empty((len(NOISES), len(y), len(counts)))
    for learn, rows in parts:
        means = _means(z[learn], y[learn])
        for k, noise in enumerate(NOISES):
            weighted = means * _precision(basis, noise)
            held_out[k, rows] = z[rows] @ weighted.T - 0.5 * (weighted * means).sum(axis=1)
    share = 1 / (len(counts) * counts[y])
    losses = [
        [-(share * log_softmax(t * values, axis=1)[np.arange(len(y)), y]).sum() for t in TEMPERATURES]
        for values in held_out
    ]
    best = np.unravel_index(np.argmin(losses), np.shape(losses))
    return NOISES[best[0]], float(TEMPERATURES[best[1]])
