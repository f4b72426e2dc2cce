"""Logistic regression on the features of a frozen encoder: what a practitioner would try first."""

from __future__ import annotations

import abc
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scorebayes.baselines.base import Fitted, Kind
from scorebayes.baselines.logistic import fit_regression
from scorebayes.data.load import ImageSet
from scorebayes.evidence.encoders import (
    DEFAULT_ENCODER,
    DEFAULT_SIDE,
    Encoder,
    of_both_views,
    open_encoder,
)
from scorebayes.evidence.feature_maps import statistics
from scorebayes.progress import progress_bar
from scorebayes.runs.run import Run

STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
IMAGES_AT_A_TIME = 32


class LogisticOnFeatures(Kind):
    """Multinomial logistic regression on what an encoder says of image and mirror image: the vector that its authors pool
    (the mean of its last features), or the ``statistics`` of the map that our own sources see.

    The encoder is that of [evidence.features], or the default one. The strength of regularisation (C) is the one of lowest
    validation log-loss. The encoder's weights were trained on other images: never to be mixed with models from scratch.
    """

    on_cpu = True
    pretrained = True

    def __init__(self, *, of_statistics: bool) -> None:
        self.of_statistics = of_statistics
        self.title = f"logistic regression on {'statistics of ' * of_statistics}pretrained features"

    def build(self, run: Run) -> nn.Module:
        encoder, n_classes = encoder_of(run, torch.device("cpu")), len(run.facts.classes)
        of = _OnStatistics if self.of_statistics else _OnPooled
        return of(encoder, run.scaling[:2], n_classes)

    def fit(self, run: Run, train: ImageSet, val: ImageSet, folder: Path, steps: int | None) -> Fitted:
        start = time.monotonic()
        net = self.build(run)
        assert isinstance(net, _OnFeatures)
        weights, record = fit_regression(
            (_features(net, run, train), train.labels), (_features(net, run, val), val.labels), STRENGTHS
        )
        net.load_state_dict(weights)
        record |= {"encoder": said_of(net.encoder), "seconds": time.monotonic() - start}
        return Fitted(net, run.facts.log_shares, record)


def encoder_of(run: Run, device: torch.device) -> Encoder:
    """That of the run's evidence, or the default one."""
    evidence = run.config.sections["evidence"]
    options = evidence.get("features") or evidence.get("pooled") or {}
    return open_encoder(options.get("encoder", DEFAULT_ENCODER), options.get("size", DEFAULT_SIDE), device)


def said_of(encoder: Encoder) -> dict[str, str]:
    """What is recorded of an encoder."""
    return {key: getattr(encoder, key) for key in ("name", "sha256", "licence", "pretrained_on")}


class _OnFeatures(nn.Module, abc.ABC):
    """Standardised images -> logits: features of both mirror images, and one linear layer in float64."""

    def __init__(self, encoder: Encoder, scaling: tuple[float, float], n_classes: int) -> None:
        super().__init__()
        self.encoder, self.scaling = encoder, scaling
        self.layer = nn.Linear(self.length, n_classes, dtype=torch.float64)

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """Of the features."""

    @abc.abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """[N, C, S, S] -> [N, F] float64."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.features(x))


class _OnPooled(_OnFeatures):
    @property
    def length(self) -> int:
        return self.encoder.pooled_features

    def features(self, x: Tensor) -> Tensor:
        return of_both_views(self.encoder.pooled, x.cpu(), self.scaling).mean(dim=1).double()


class _OnStatistics(_OnFeatures):
    @property
    def length(self) -> int:
        return 2 * self.encoder.channels

    def features(self, x: Tensor) -> Tensor:
        return statistics(of_both_views(self.encoder, x.cpu(), self.scaling))


def _features(net: _OnFeatures, run: Run, images: ImageSet) -> NDArray[np.float64]:
    parts = []
    with torch.no_grad(), progress_bar("features", len(images)) as advance:
        for first in range(0, len(images), IMAGES_AT_A_TIME):
            some = images.images[first : first + IMAGES_AT_A_TIME]
            parts.append(net.features(run.standardise(some)).numpy())
            advance(min(first + IMAGES_AT_A_TIME, len(images)), "")
    return np.concatenate(parts)
