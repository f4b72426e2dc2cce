"""Logistic regression on pixels: what any classifier must beat."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
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
        tried = []
        for strength in STRENGTHS:
            reduce = PCA(min(COMPONENTS, *x.shape), random_state=0)
            model = make_pipeline(StandardScaler(), reduce, LogisticRegression(C=strength, max_iter=2000))
            model.fit(x, train.labels)
            loss = log_loss(val.labels, model.predict_proba(x_val), labels=model.classes_)
            tried.append((float(loss), strength, model))
        _, chosen, best = min(tried, key=lambda entry: entry[0])
        net = self.build(run)
        net.load_state_dict(_as_one_layer(best))
        record = {
            "settings_tried": [
                {"setting": {"C": strength}, "val_log_loss": loss} for loss, strength, _ in tried
            ],
            "setting": {"C": chosen},
            "seconds": time.monotonic() - start,
        }
        return Fitted(net, run.facts.log_shares, record)


class _Linear(nn.Module):
    """Pixels -> logits in float64, as scikit-learn computes."""

    def __init__(self, features: int, n_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, n_classes, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1).double())


def _as_one_layer(model: Pipeline) -> dict[str, Tensor]:
    """Scaling, principal components and regression folded into one affine map."""
    scaler, reduce, regression = (step for _, step in model.steps)
    coefficients, intercept = regression.coef_, regression.intercept_
    if len(coefficients) == 1:  # of two classes, scikit-learn keeps the log-odds of the second
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercept = np.concatenate([[0.0], intercept])
    on_scaled = coefficients @ reduce.components_
    weight = on_scaled / scaler.scale_
    bias = intercept - on_scaled @ reduce.mean_ - weight @ scaler.mean_
    return {"layer.weight": torch.from_numpy(weight), "layer.bias": torch.from_numpy(bias)}
