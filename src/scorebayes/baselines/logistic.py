"""Logistic regression on standardised pixels: what any classifier must beat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scorebayes.data.load import ImageSet

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
COMPONENTS = 512  # of the pixels; exact for small images, keeps large ones feasible


def fit_logistic(train: ImageSet, val: ImageSet) -> Callable[[ImageSet], NDArray[np.float64]]:
    """Fit with the strength of regularisation (C) that gives the lowest validation log-loss; returns ``prob(images)``."""

    def pixels(images: ImageSet) -> NDArray[np.float64]:
        return images.images.reshape(len(images), -1) / 2.0**images.bits

    x, x_val = pixels(train), pixels(val)
    components = min(COMPONENTS, *x.shape)
    models = []
    for strength in STRENGTHS:
        reduce = PCA(components, random_state=0)
        model = make_pipeline(StandardScaler(), reduce, LogisticRegression(C=strength, max_iter=2000))
        model.fit(x, train.labels)
        models.append((log_loss(val.labels, model.predict_proba(x_val), labels=model.classes_), model))
    _, best = min(models, key=lambda entry: entry[0])
    return lambda images: best.predict_proba(pixels(images))
