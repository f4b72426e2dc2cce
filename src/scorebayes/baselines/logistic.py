"""Logistic regression on pixels: what any classifier must beat."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from scorebayes.baselines.base import Fitted, Kind
from scorebayes.data.load import ImageSet
from scorebayes.runs.run import Run

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
Labelled = tuple[NDArray[np.float64], NDArray[np.int64]]
COMPONENTS = 512  # of the pixels; exact for small images, keeps large ones feasible


class Logistic(Kind):
    """Multinomial logistic regression; the strength of regularisation (C) is the one of lowest validation log-loss."""

    title = "logistic regression on pixels"
    on_cpu = True

    def build(self, run: Run) -> nn.Module:
        prepare = run.config.prepare
        return _Linear(prepare.channels * prepare.size**2, len(run.facts.classes))

    def fit(self, run: Run, train: ImageSet, val: ImageSet, folder: Path, steps: int | None) -> Fitted:
        start = time.monotonic()
        x, x_val = (run.standardise(part.images).flatten(1).double().numpy() for part in (train, val))
        components = min(COMPONENTS, *x.shape)
        weights, record = fit_regression((x, train.labels), (x_val, val.labels), STRENGTHS, components)
        net = self.build(run)
        net.load_state_dict(weights)
        return Fitted(net, run.facts.log_shares, {**record, "seconds": time.monotonic() - start})


class _Linear(nn.Module):
    """Pixels -> logits in float64, as scikit-learn computes."""

    def __init__(self, features: int, n_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, n_classes, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1).double())


def fit_regression(
    train: Labelled, val: Labelled, strengths: Sequence[float], components: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The regression of lowest validation log-loss as one linear layer's weights (``layer.weight`` [K, F], ``layer.bias``
    [K]), and the record of what was tried.

    train, val: features [N, F] and labels [N]. strengths: of regularisation (C). components: principal components that the
    scaled features are reduced to; None: no reduction.
    """
    reduce = [] if components is None else [PCA(components, random_state=0)]
    scaled = make_pipeline(StandardScaler(), *reduce)
    z, z_val = scaled.fit_transform(train[0]), scaled.transform(val[0])
    tried = []
    for strength in strengths:
        model = LogisticRegression(C=strength, max_iter=2000).fit(z, train[1])
        loss = log_loss(val[1], model.predict_proba(z_val), labels=model.classes_)
        tried.append((float(loss), strength, model))
    _, chosen, best = min(tried, key=lambda entry: entry[0])
    record = {
        "settings_tried": [{"setting": {"C": c}, "val_log_loss": loss} for loss, c, _ in tried],
        "setting": {"C": chosen},
    }
    return _as_one_layer(scaled, best), record


def _as_one_layer(scaled: Pipeline, regression: LogisticRegression) -> dict[str, Tensor]:
    """Scaling, principal components (if any) and regression folded into one affine map."""
    scaler, *reduce = (step for _, step in scaled.steps)
    weight, bias = regression.coef_, regression.intercept_
    if len(weight) == 1:  # of two classes, scikit-learn keeps the log-odds of the second
        weight = np.concatenate([np.zeros_like(weight), weight])
        bias = np.concatenate([[0.0], bias])
    for components in reduce:
        weight = weight @ components.components_
        bias = bias - weight @ components.mean_
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    return {"layer.weight": torch.from_numpy(weight), "layer.bias": torch.from_numpy(bias)}
