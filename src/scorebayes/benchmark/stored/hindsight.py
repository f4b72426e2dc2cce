"""Accuracy at the best threshold for the test images themselves, which nobody may choose in practice.

The gap to the accuracy shows how many errors come from the threshold: the ranking of the images is good, but the test split
is shifted from the validation split on which the threshold was chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorebayes.benchmark.stored.answers import spread
from scorebayes.benchmark.stored.posteriors import Said


def hindsight_accuracy(said: Said, positive: str) -> dict[str, dict[str, Any]]:
    """Of every model: mean, std and values over the seeds. ``said``: posteriors of two classes (``read_posteriors``)."""
    values: dict[str, list[float]] = {}
    for (model, _), rows in said.items():
        truth = (rows["label"] == positive).to_numpy()
        values.setdefault(model, []).append(best_accuracy(truth, rows[f"prob_{positive}"].to_numpy()))
    return {model: spread(of) for model, of in values.items()}


def best_accuracy(truth: NDArray[np.bool_], score: NDArray) -> float:
    """The highest accuracy of "positive from this score on" over all thresholds, the two that call all alike included."""
    order = np.argsort(-score, kind="stable")
    gain = np.cumsum(np.where(truth[order], 1, -1))  # right more than if all were called negative
    ends = np.append(np.diff(score[order]) != 0, True)  # images of equal score fall on the same side
    return float((np.count_nonzero(~truth) + max(0, gain[ends].max())) / len(truth))
