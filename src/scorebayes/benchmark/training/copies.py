"""Test images that are near copies of a training image, and the AUC of the models without them.

The audit of every run finds exact copies. Near copies (two frames of one lesion, one film scanned twice) are not an error
in a data set that names no patients, but a model that memorises training images does better on them than on new patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scorebayes.benchmark.stored.answers import Answers, spread
from scorebayes.runs.run import Run

NEAR = 0.99
"""Correlation of grey values, over the pixels of the prepared image, above which two images are near copies."""


def near_copies(runs: Sequence[Run], each: Sequence[Answers], models: Sequence[str]) -> dict[str, Any]:
    """How many test images are near a training image, seed by seed, and the AUC of every model without these.

    Keys: ``correlation``, ``images`` (numbers, seed by seed) and ``auc`` (model -> mean, std, values), empty where none is
    near, or the others are of one class.
    """
    near = [closest(run) > NEAR for run in runs]
    others = [_without(answers, of) for answers, of in zip(each, near, strict=True)]
    found: dict[str, Any] = {"correlation": NEAR, "images": [int(of.sum()) for of in near], "auc": {}}
    both = all(len(np.unique(answers.labels == answers.positive)) == 2 for answers in others)
    if any(found["images"]) and both:
        found["auc"] = {
            model: spread([float(answers.wins(model).mean()) for answers in others]) for model in models
        }
    return found


def closest(run: Run) -> pd.Series:
    """Of every test image of a run, by its id and in the order of its split: the highest correlation with a training image
    or its mirror image."""
    train, test = run.images("train").images, run.images("test")
    seen = _normalised(np.concatenate([train, train[..., ::-1]]))
    return pd.Series((_normalised(test.images) @ seen.T).max(axis=1), index=list(test.keys))


def _normalised(images: NDArray) -> NDArray[np.float32]:
    """[N, C, S, S] -> [N, D] of mean 0 and length 1, so that products are correlations; an even image is zero."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _without(answers: Answers, near: pd.Series) -> Answers:
    keep = ~near.loc[list(answers.images)].to_numpy()
    return replace(
        answers,
        labels=answers.labels[keep],
        images=tuple(np.array(answers.images)[keep].tolist()),
        groups=tuple(np.array(answers.groups)[keep].tolist()),
        prob={model: prob[keep] for model, prob in answers.prob.items()},
    )
