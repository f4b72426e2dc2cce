"""What every discriminative classifier of the harness is: class scores of standardised images, calibrated like ours.

A softmax network trained on class-balanced batches has learned the posterior under a uniform prior: its logits are
evidence for the classes, without the class shares. They take the way of the class scores of the generative model: weight
(a temperature) and bias fitted on the validation images, then the explicit log-prior, which gives the shares back.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor, nn

from scorebayes.data.load import ImageSet
from scorebayes.decision.calibration import fit_calibration
from scorebayes.decision.table import Block, EvidenceTable
from scorebayes.runs.run import Run

IMAGES_AT_A_TIME = 256
LEAST_WEIGHT = (
    1e-3  # of calibration: a temperature keeps the order of the images, where the fit would say nothing
)


@dataclass(frozen=True)
class Fitted:
    """What fitting found: the model (standardised images [B, C, S, S] -> logits [B, Y]), and what is to be recorded.

    ``log_prior``: [Y], the class prior that the logits contain, which is that of the images as they were drawn.
    """

    net: nn.Module
    log_prior: NDArray[np.float64]
    record: dict[str, Any]


class Kind(abc.ABC):
    """A kind of discriminative classifier.

    on_cpu: it computes in float64, which not every device has, or by scikit-learn, and stays on the CPU.
    pretrained: it starts from weights that were trained on other images.
    """

    title: str
    on_cpu = False
    pretrained = False
    feature_layer: str | None = (
        None  # the module whose output [B, F, h, w] is the last map of features, if there is one
    )

    @abc.abstractmethod
    def build(self, run: Run) -> nn.Module:
        """The model with weights of the right shapes, on the CPU."""

    @abc.abstractmethod
    def fit(self, run: Run, train: ImageSet, val: ImageSet, folder: Path, steps: int | None) -> Fitted:
        """Fit on the training images, every choice on the validation images; work in progress goes into ``folder``.

        ``steps``: optimiser steps, where there are any; None: what costs as much as the training of the run's score.
        """


class Baseline:
    """A fitted classifier of a run.

    net: standardised images [B, C, S, S] -> logits [B, Y], before calibration. record: ``baseline.json``.
    feature_layer: the submodule of ``net`` with the last map of features [B, F, h, w], or None.
    """

    def __init__(
        self, run: Run, kind: Kind, net: nn.Module, calibration: Temperature, record: dict[str, Any]
    ) -> None:
        self.run = run
        self.net = net.to("cpu" if kind.on_cpu else run.device).eval()
        self.calibration = calibration
        self.record = record
        self.feature_layer = None if kind.feature_layer is None else net.get_submodule(kind.feature_layer)

    def logits(self, x: Tensor) -> Tensor:
        """Standardised images [B, C, S, S] -> logits [B, Y] whose softmax is the calibrated posterior.

        Differentiable with respect to ``x`` where ``net`` is (all but HOG and SVM).
        """
        raw = self.net(x.to(_device(self.net)))
        offset = torch.from_numpy(self.calibration.bias + self.run.log_prior)
        return self.calibration.weight * raw + offset.to(raw)

    def evidence(self, images: ImageSet) -> NDArray[np.float64]:
        """Calibrated logits of prepared images, before the prior [N, Y]."""
        return self.calibration.weight * raw_logits(self.run, self.net, images) + self.calibration.bias

    def prob(self, images: ImageSet) -> NDArray[np.float64]:
        """Calibrated posterior under the run's prior [N, Y]."""
        return softmax(self.evidence(images) + self.run.log_prior, axis=1)


def raw_logits(run: Run, net: nn.Module, images: ImageSet) -> NDArray[np.float64]:
    """Logits of prepared images [N, Y], in float32 and in batches."""
    parts, device = [], _device(net)
    with torch.no_grad():
        for start in range(0, len(images), IMAGES_AT_A_TIME):
            x = run.standardise(images.images[start : start + IMAGES_AT_A_TIME])
            parts.append(net(x.to(device)).cpu().double().numpy())
    return np.concatenate(parts)


def _device(net: nn.Module) -> torch.device:
    return next(itertools.chain(net.parameters(), net.buffers())).device


@dataclass(frozen=True)
class Temperature:
    """How raw logits become evidence: ``weight * logits + bias`` [Y]. log_loss: cross-fitted, nats per image."""

    weight: float
    bias: NDArray[np.float64]
    log_loss: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"weights": [self.weight], "bias": self.bias.tolist(), "log_loss": self.log_loss}

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> Temperature:
        """The inverse of ``to_dict``."""
        (weight,) = stored["weights"]
        return Temperature(weight, np.asarray(stored["bias"], dtype=np.float64), stored["log_loss"])


def fit_temperature(
    logits: NDArray, log_prior: NDArray, labels: NDArray[np.int64], patients: Sequence[str], seed: int
) -> Temperature:
    """Temperature and bias of logits [N, Y] of images with labels [N], of patients [N] whom folds do not divide.

    ``log_prior`` [Y]: what the logits contain of a prior; it is taken out, so that the run's own can be put in.
    """
    table = EvidenceTable(
        tuple(map(str, range(len(logits)))), labels, {"logits": Block.exactly(logits - log_prior)}, np.zeros(len(logits)),
        tuple(patients),
    )  # fmt: skip
    found = fit_calibration(table, table.log_shares, seed=seed)
    weight = max(float(found.weights["logits"][0]), LEAST_WEIGHT)
    return Temperature(weight, found.bias - weight * log_prior, found.log_loss)
