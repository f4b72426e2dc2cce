"""The wavelet coefficients: Gaussian mixtures (``mixtures``) of the scattering coefficients of the image.

Several grids and numbers of clusters are learned, in seconds to minutes and without a network; their log-likelihoods are
averaged, since they see the same image (docs/decisions/0017, 0018).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.decision.table import Block
from scorebayes.diffusion.likelihood import Likelihood
from scorebayes.errors import ConfigError, command
from scorebayes.evidence.base import Evidence, Home, PixelMaps, TrainingImages
from scorebayes.evidence.gradients import integrated_gradients
from scorebayes.evidence.mixtures import (
    CLUSTERS,
    Mixtures,
    fit_mixtures,
    images_to_cluster,
    parts_by_patient,
)
from scorebayes.evidence.scattering import FINEST, on_grid, scattering
from scorebayes.progress import progress_bar
from scorebayes.storage import sealed
from scorebayes.storage.timings import note_seconds, seconds_of

GRIDS = (1, 2, FINEST)  # cells along a side
IMAGES_AT_A_TIME = 16  # between two steps of the progress bar


class Wavelets(Evidence):
    """Mixtures of the wavelets of the run's training images. Exact: no draw, no network evaluation."""

    name = "wavelets"
    title = "the wavelet coefficients"

    def __init__(self, home: Home) -> None:
        self.home = home
        self.path = home.path / "wavelets.safetensors"

    def fit(self, images: TrainingImages) -> Mapping[str, Mapping[str, Any]]:
        """Images without a label take part where there are some."""
        home, start = self.home, time.perf_counter()
        train = None if self.learned else images_to_cluster(images, len(home.classes), home.seed)
        if train is None:
            return {}
        found = []
        with progress_bar("wavelets", len(train)) as advance:
            for first in range(0, len(train), IMAGES_AT_A_TIME):
                x = home.standardise(train.images[first : first + IMAGES_AT_A_TIME])
                found.append(scattering(x))
                advance(min(first + IMAGES_AT_A_TIME, len(train)), "")
        mixtures = fit_wavelets(
            torch.cat(found), train.labels, train.patients, mirrored=home.train_settings.flip, seed=home.seed
        )
        note_seconds(home.path, self.name, time.perf_counter() - start)
        mixtures.save(self.path)
        return {}

    @property
    def learned(self) -> bool:
        return self.path.exists()

    @property
    def seconds(self) -> float:
        return seconds_of(self.home.path, self.name)

    @cached_property
    def mixtures(self) -> WaveletMixtures:
        """What was learned. ConfigError where the file is damaged."""
        return WaveletMixtures.load(self.path)

    def fingerprint(self, likelihood: Likelihood | None = None) -> str:
        content = [self.mixtures.fingerprint, *map(repr, self.home.scaling)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def log_lik(self, x: Tensor, keys: Sequence[str], likelihood: Likelihood | None = None) -> Block:
        with torch.no_grad():
            return Block.exactly(self.mixtures.of_images(x).numpy())

    def weighted(
        self, x: Tensor, keys: Sequence[str], weights: NDArray[np.float64], draws: int = 1
    ) -> Tensor:
        return float(weights[0]) * self.mixtures.of_images(x)

    def maps(
        self,
        x: Tensor,
        key: str,
        block: Block,
        weights: NDArray[np.float64],
        against: NDArray[np.float64],
    ) -> PixelMaps:
        """The value of the coefficients is not a sum over pixels. Integrated gradients share it among them, and what an
        even grey image would get is the offset."""
        shared, whole = np.zeros(x.shape[2:]), float(weights @ block.level_means[0] @ against)
        if weights.any():
            slopes = torch.from_numpy(weights[0] * against)
            shared = integrated_gradients(lambda image: self.mixtures.of_images(image)[0] @ slopes, x)
        return PixelMaps(
            shared[None], np.zeros(x.shape[2:]), np.zeros(1), np.full(1, np.nan), whole - float(shared.sum())
        )


@dataclass(frozen=True)
class WaveletMixtures:
    """mixtures: by the cells along a side of their grid, and the clusters of a class. mirrored: an image and its mirror
    image are one."""

    mixtures: Mapping[tuple[int, int], Mixtures]
    mirrored: bool

    def __call__(self, coefficients: Tensor) -> Tensor:
        """``scattering`` [N, C, P, 4, 4] -> log-likelihoods [N, Y] in nats, float64, less what is alike for all classes."""
        features = {cells: on_grid(coefficients, cells, self.mirrored) for cells in GRIDS}
        found = torch.stack([of(features[cells]) for (cells, _), of in self.mixtures.items()]).mean(dim=0)
        return found - found.mean(dim=1, keepdim=True)

    def of_images(self, x: Tensor) -> Tensor:
        """The same of standardised images [N, C, S, S]; the gradient passes through."""
        return self(scattering(x))

    @cached_property
    def fingerprint(self) -> str:
        """Of the numbers that count."""
        return hashlib.sha256(safetensors.torch.save(self._arrays())).hexdigest()

    def save(self, path: Path) -> None:
        """As safetensors."""
        sealed.write(path, safetensors.torch.save(self._arrays()))

    def _arrays(self) -> dict[str, Tensor]:
        arrays = {
            f"{cells}.{clusters}.{name}": array
            for (cells, clusters), of in self.mixtures.items()
            for name, array in of._asdict().items()
        }
        return {**arrays, "mirrored": torch.tensor(self.mirrored)}

    @staticmethod
    def load(path: Path) -> WaveletMixtures:
        """The inverse of ``save``. ConfigError where the file is damaged."""
        try:
            arrays = safetensors.torch.load(sealed.read(path))
            mixtures = {
                key: Mixtures(*(arrays[f"{key[0]}.{key[1]}.{name}"] for name in Mixtures._fields))
                for key in product(GRIDS, CLUSTERS)
            }
            mirrored = bool(arrays["mirrored"])
        except (safetensors.SafetensorError, KeyError, RuntimeError) as error:
            raise ConfigError(
                f"{path}: the file is damaged or from another version ({error}).",
                f"Delete it and train it again with `{command('train', '--resume', path.parent)}`.",
            ) from error
        return WaveletMixtures(mixtures, mirrored)


def fit_wavelets(
    coefficients: Tensor,
    labels: NDArray[np.int64],
    patients: Sequence[str],
    *,
    mirrored: bool,
    seed: int,
) -> WaveletMixtures:
    """Learn from training images: coefficients [N, C, P, 4, 4] of ``scattering``, labels [N], -1 where unknown; every class
    is there. patients: ids [N], whom cross-validation keeps apart. Unlabelled images enter the covariance."""
    known = labels >= 0
    parts = parts_by_patient(labels[known], np.asarray(patients)[known], seed)
    mixtures: dict[tuple[int, int], Mixtures] = {}
    for cells in GRIDS:
        features = on_grid(coefficients, cells, mirrored).numpy()
        found = fit_mixtures(features, labels, parts, seed)
        mixtures |= {(cells, clusters): of for clusters, of in zip(CLUSTERS, found, strict=True)}
    return WaveletMixtures(mixtures, mirrored)
