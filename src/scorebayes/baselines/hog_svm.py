"""Histograms of oriented gradients and a support-vector machine: the classical way before networks learned features."""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.feature import hog
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import SVC
from torch import Tensor, nn

from scorebayes.baselines.base import Fitted, Kind, fit_temperature
from scorebayes.data.load import ImageSet
from scorebayes.decision.posterior import uniform_log_prior
from scorebayes.runs.run import Run

CELLS = 7  # along a side, about
STRENGTHS = (0.1, 1.0, 10.0, 100.0)
WIDTHS = (0.3, 1.0, 3.0)  # gamma, in units of 1 / (features x variance)


class HogSvm(Kind):
    """Dalal & Triggs 2005, with radial kernels; C and gamma are those of lowest validation log-loss after calibration."""

    title = "HOG and SVM"
    on_cpu = True

    def build(self, run: Run) -> nn.Module:
        prepare, n_train = run.config.prepare, sum(run.facts.train_counts)
        features = len(_features(np.zeros((1, prepare.channels, prepare.size, prepare.size)))[0])
        return _Machines(n_train, features, len(run.facts.classes))

    def fit(self, run: Run, train: ImageSet, val: ImageSet, folder: Path, steps: int | None) -> Fitted:
        start = time.monotonic()
        f, f_val = (_features(run.standardise(part.images).numpy()) for part in (train, val))
        unit = 1 / (f.shape[1] * float(f.var()))
        n_classes = len(run.facts.classes)
        log_prior = uniform_log_prior(n_classes)  # classes are weighted alike
        tried: list[dict[str, Any]] = []
        best, lowest = None, np.inf
        for strength, width in product(STRENGTHS, WIDTHS):
            net = _Machines(len(f), f.shape[1], n_classes)
            net.fit(f, train.labels, strength, width * unit)
            found = fit_temperature(net.decide(f_val), log_prior, val.labels, val.patients, run.config.seed)
            loss = found.log_loss
            tried.append({"setting": {"C": strength, "gamma": width * unit}, "val_log_loss": loss})
            if best is None or loss < lowest:
                best, lowest, chosen = net, loss, tried[-1]["setting"]
        assert best is not None
        record = {"settings_tried": tried, "setting": chosen, "seconds": time.monotonic() - start}
        return Fitted(best, log_prior, record)


class _Machines(nn.Module):
    """One machine against the rest for every class (of two classes, one for both), as plain arrays.

    support: features of the training images [N, F]; dual: their weights [N, Y], zero where they are no support vectors.
    """

    support: Tensor
    dual: Tensor
    bias: Tensor
    gamma: Tensor

    def __init__(self, n_train: int, features: int, n_classes: int) -> None:
        super().__init__()
        self.register_buffer("support", torch.zeros(n_train, features))
        self.register_buffer("dual", torch.zeros(n_train, n_classes, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(n_classes, dtype=torch.float64))
        self.register_buffer("gamma", torch.zeros((), dtype=torch.float64))

    def fit(self, features: NDArray, labels: NDArray, strength: float, gamma: float) -> None:
        """features [N, F], labels [N]."""
        self.support.copy_(torch.from_numpy(features))
        self.gamma.fill_(gamma)
        n_classes = len(self.bias)
        for y in range(1, 2) if n_classes == 2 else range(n_classes):
            machine = SVC(C=strength, gamma=gamma, class_weight="balanced").fit(features, labels == y)
            self.dual[machine.support_, y] = torch.from_numpy(machine.dual_coef_[0])
            self.bias[y] = float(machine.intercept_[0])

    def decide(self, features: NDArray) -> NDArray[np.float64]:
        """features [N, F] -> signed distances [N, Y]; of two classes, those of the first are zero."""
        kernel = rbf_kernel(features, self.support.numpy(), float(self.gamma))
        return kernel @ self.dual.numpy() + self.bias.numpy()

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.decide(_features(x.numpy())))


def _features(x: NDArray) -> NDArray[np.float32]:
    """Standardised images [N, C, S, S] -> histograms [N, F]; of several channels the strongest gradient counts."""
    cell = max(2, x.shape[-1] // CELLS)
    return np.stack(
        [
            hog(image, 9, (cell, cell), (2, 2), channel_axis=0).astype(np.float32)
            for image in x.astype(np.float64)
        ]
    )
