"""The pooled features: Gaussian mixtures (``mixtures``) of the mean and deviation of an encoder's features over the image.

What the source of the wavelets is to the pixels, this is to a pretrained encoder: learned in seconds once the images
are encoded, without a network of its own, and exact. An image and its mirror image are one: their vectors are averaged. The
principal components of the training images are whitened, for two numbers of them, and the log-likelihoods of all mixtures
are averaged (docs/decisions/0023, 0026).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.decision.table import Block
from scorebayes.diffusion.likelihood import Likelihood
from scorebayes.errors import ConfigError
from scorebayes.evidence.base import Evidence, Home, PixelMaps, TrainingImages
from scorebayes.evidence.encoders import DEFAULT_ENCODER, DEFAULT_SIDE, EncoderName, open_encoder
from scorebayes.evidence.encoders.note import Note
from scorebayes.evidence.feature_maps import EncodedMaps, statistics
from scorebayes.evidence.gradients import integrated_gradients
from scorebayes.evidence.mixtures import (
    CLUSTERS,
    Mixtures,
    fit_mixtures,
    images_to_cluster,
    parts_by_patient,
)
from scorebayes.storage import sealed
from scorebayes.storage.timings import note_seconds, seconds_of
from scorebayes.training.settings import Count

COMPONENTS = (
    16,
    64,
)  # few are better with few labels, many with many; their mean is never far from the better one
LEAST_SPREAD = 1e-3  # of a component, as a share of the first


class Pooled(Evidence):
    """Mixtures of the pooled features of the run's training images. Exact: no draw.

    encoder: see ``evidence.encoders``. size: side in pixels to which images are resized for it.
    """

    name = "pooled"
    title = "the encoder's pooled features"

    def __init__(
        self, home: Home, encoder: EncoderName = DEFAULT_ENCODER, size: Count = DEFAULT_SIDE
    ) -> None:
        self.home = home
        self.folder = home.path / "pooled"
        self.encoder = open_encoder(encoder, size, home.device)
        self.encoded = EncodedMaps(home, self.encoder, size)
        self.note = Note(self.folder, self.name, self.encoder, {"size": size})

    def fit(self, images: TrainingImages) -> Mapping[str, Mapping[str, Any]]:
        """Images without a label take part where there are some."""
        home, start = self.home, time.perf_counter()
        train = None if self.learned else images_to_cluster(images, len(home.classes), home.seed)
        if train is None:
            return {}
        each = self.encoded.of_images(train, "pooled features")
        features = torch.cat([statistics(maps) for maps in each])
        mixtures = fit_pooled(features, train.labels, train.patients, home.seed)
        sealed.make_folder(self.folder)
        sealed.write(self._path, safetensors.torch.save(mixtures.arrays()))
        note_seconds(home.path, self.name, time.perf_counter() - start)
        self.note.write()
        return {}

    @property
    def _path(self) -> Path:
        return (
            self.folder / "mixtures-of-statistics.safetensors"
        )  # before, in another file, of other features

    @property
    def learned(self) -> bool:
        return self.note.vouches()

    @property
    def seconds(self) -> float:
        return seconds_of(self.home.path, self.name)

    @cached_property
    def mixtures(self) -> PooledMixtures:
        """What was learned. ConfigError where the file is damaged."""
        try:
            return PooledMixtures.of(safetensors.torch.load(sealed.read(self._path)))
        except (OSError, safetensors.SafetensorError, KeyError, RuntimeError) as error:
            raise ConfigError(
                f"{self._path}: the file is missing, damaged or from another version ({error}).",
                f"Delete {self.folder} and train it again with 'scorebayes train --resume'.",
            ) from error

    def fingerprint(self, likelihood: Likelihood | None = None) -> str:
        numbers = hashlib.sha256(safetensors.torch.save(self.mixtures.arrays())).hexdigest()
        content = [
            numbers,
            self.encoder.kind,
            self.encoder.fingerprint,
            self.encoded.size,
            *map(repr, self.home.scaling),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def log_lik(self, x: Tensor, keys: Sequence[str], likelihood: Likelihood | None = None) -> Block:
        with torch.no_grad():
            return Block.exactly(self._values(x).numpy())

    def weighted(
        self, x: Tensor, keys: Sequence[str], weights: NDArray[np.float64], draws: int = 1
    ) -> Tensor:
        return float(weights[0]) * self._values(x)

    def maps(
        self,
        x: Tensor,
        key: str,
        block: Block,
        weights: NDArray[np.float64],
        against: NDArray[np.float64],
    ) -> PixelMaps:
        """Integrated gradients, through the encoder, share the value among the pixels; what an even grey image would get is
        the offset. ConfigError where the encoder gives no gradient."""
        shared, whole = np.zeros(x.shape[2:]), float(weights @ block.level_means[0] @ against)
        if weights.any():
            slopes = torch.from_numpy(weights[0] * against)
            shared = integrated_gradients(lambda image: self._values(image)[0] @ slopes, x)
        return PixelMaps(
            shared[None], np.zeros(x.shape[2:]), np.zeros(1), np.full(1, np.nan), whole - float(shared.sum())
        )

    def _values(self, x: Tensor) -> Tensor:
        return self.mixtures(statistics(self.encoded(x)))


class PooledMixtures(NamedTuple):
    """centre [F] and axes [F, K] of the features, whitened; mixtures by the number of components, and of clusters of a
    class."""

    centre: Tensor
    axes: Tensor
    mixtures: Mapping[tuple[int, int], Mixtures]

    def __call__(self, features: Tensor) -> Tensor:
        """[N, F] -> log-likelihoods [N, Y] in nats, float64, less what is alike for all classes."""
        z = (features - self.centre) @ self.axes
        each = [of(z[:, :components]) for (components, _), of in self.mixtures.items()]
        found = torch.stack(each).mean(dim=0)
        return found - found.mean(dim=1, keepdim=True)

    def arrays(self) -> dict[str, Tensor]:
        """All numbers by name."""
        named = {
            f"{components}.{clusters}.{name}": array.contiguous()
            for (components, clusters), of in self.mixtures.items()
            for name, array in of._asdict().items()
        }
        return {**named, "centre": self.centre, "axes": self.axes.contiguous()}

    @staticmethod
    def of(arrays: Mapping[str, Tensor]) -> PooledMixtures:
        """The inverse of ``arrays``."""
        mixtures = {
            key: Mixtures(*(arrays[f"{key[0]}.{key[1]}.{name}"] for name in Mixtures._fields))
            for key in product(COMPONENTS, CLUSTERS)
        }
        return PooledMixtures(arrays["centre"], arrays["axes"], mixtures)


def fit_pooled(
    features: Tensor, labels: NDArray[np.int64], patients: Sequence[str], seed: int
) -> PooledMixtures:
    """Learn from the features of training images [N, F], labels [N], -1 where unknown; every class is there. patients: ids
    [N], whom cross-validation keeps apart. Unlabelled images enter the principal components and the covariance."""
    known = labels >= 0
    parts = parts_by_patient(labels[known], np.asarray(patients)[known], seed)
    centre = features.mean(dim=0)
    _, spreads, axes = torch.linalg.svd(features - centre, full_matrices=False)
    kept = min(max(COMPONENTS), int((spreads > LEAST_SPREAD * spreads[0]).sum()))
    scaled = (axes[:kept] / spreads[:kept, None]).T * len(features) ** 0.5
    z = ((features - centre) @ scaled).numpy()
    mixtures: dict[tuple[int, int], Mixtures] = {}
    for components in COMPONENTS:
        found = fit_mixtures(z[:, :components], labels, parts, seed)
        mixtures |= {(components, clusters): of for clusters, of in zip(CLUSTERS, found, strict=True)}
    return PooledMixtures(centre, scaled, mixtures)
