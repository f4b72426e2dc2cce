"""The area under the ROC curve of independent cases, by DeLong's method."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from scorebayes.metrics.weighted import Array


class AucTest(NamedTuple):
    """Difference of two AUCs (first minus second) on the same cases, its interval and two-sided p-value."""

    difference: float
    interval: tuple[float, float]
    p: float


def delong(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    """AUC and its variance for independent cases (DeLong et al. 1988, by the ranks of Sun & Xu 2014).

    labels [N] truth values, scores [N] -> (AUC, variance). Raises ValueError unless both classes are present;
    the variance is NaN where a class has a single case.
    """
    area, covariance = _delong(labels, np.asarray(scores, dtype=np.float64)[None])
    return float(area[0]), float(covariance[0, 0])


def delong_test(labels: ArrayLike, a: ArrayLike, b: ArrayLike, level: float = 0.95) -> AucTest:
    """Are the AUCs of two scores of the same independent cases different? labels, a, b [N]."""
    area, covariance = _delong(labels, np.stack([np.asarray(a, np.float64), np.asarray(b, np.float64)]))
    difference = float(area[0] - area[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance <= 1e-18:  # the same order of all cases
        return AucTest(difference, (difference, difference), 1.0 if difference == 0 else 0.0)
    half = float(stats.norm.ppf((1 + level) / 2) * np.sqrt(variance))
    p = float(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))
    return AucTest(difference, (difference - half, difference + half), p)


def auc_interval(labels: ArrayLike, scores: ArrayLike, level: float = 0.95) -> list[float] | None:
    """DeLong's interval of the AUC of independent cases, cut to [0, 1]; None if a class has one case only.

    Where the classes separate perfectly DeLong's variance is 0; then the exact binomial bound for the size of
    the smaller class is given, an approximation that is honest about small samples.
    """
    area, variance = delong(labels, scores)
    if variance == 0 and area in (0.0, 1.0):
        truth = np.asarray(labels, dtype=bool)
        bound = float(((1 - level) / 2) ** (1 / min(truth.sum(), (~truth).sum())))
        return [bound, 1.0] if area == 1 else [0.0, 1 - bound]
    if not np.isfinite(variance):
        return None
    half = stats.norm.ppf((1 + level) / 2) * np.sqrt(variance)
    return [float(max(0.0, area - half)), float(min(1.0, area + half))]


def _delong(labels: ArrayLike, scores: Array) -> tuple[Array, Array]:
    """scores [S, N] -> AUCs [S] and their covariance [S, S]."""
    truth = np.asarray(labels, dtype=bool)
    n_pos, n_neg = int(truth.sum()), int((~truth).sum())
    if scores.shape[1:] != truth.shape:
        raise ValueError(f"expected one score for each of {len(truth)} labels, got {scores.shape[1:]}")
    if not n_pos or not n_neg:
        raise ValueError("the AUC needs cases of both classes")
    ranks = stats.rankdata(scores, axis=1)
    beaten = (ranks[:, truth] - stats.rankdata(scores[:, truth], axis=1)) / n_neg  # by each positive case
    beating = 1 - (ranks[:, ~truth] - stats.rankdata(scores[:, ~truth], axis=1)) / n_pos  # each negative case
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance = _covariance(beaten) / n_pos + _covariance(beating) / n_neg
    return beaten.mean(1), covariance


def _covariance(components: Array) -> Array:
    centred = components - components.mean(1, keepdims=True)
    return centred @ centred.T / np.float64(components.shape[1] - 1)
