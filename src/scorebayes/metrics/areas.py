"""The area under the ROC curve of independent cases: DeLong's method, and Newcombe's where the area is nearly 0 or 1."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import brentq

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
    if variance <= 1e-18:  # nothing varies: the same order of all cases, or perfect separation by both
        return difference_at_the_edge(labels, a, b, level=level)
    half = float(stats.norm.ppf((1 + level) / 2) * np.sqrt(variance))
    p = float(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))
    return AucTest(difference, (difference - half, difference + half), p)


def difference_at_the_edge(
    labels: ArrayLike, a: ArrayLike, b: ArrayLike, counts: tuple[int, int] | None = None, level: float = 0.95
) -> AucTest:
    """The same where no resampling shows how far the difference may be off, as where both scores separate perfectly.

    The intervals of the two areas (``newcombe``) are squared and added as if the areas were independent, which is too wide
    rather than too narrow. Scores that put all cases in the same order do not differ, whatever the sample. ``counts``: of
    positive and negative patients, by default of cases.
    """
    if np.array_equal(stats.rankdata(a), stats.rankdata(b)):
        return AucTest(0.0, (0.0, 0.0), 1.0)
    truth = np.asarray(labels, dtype=bool)
    n_pos, n_neg = counts or (int(truth.sum()), int((~truth).sum()))
    first, second = (delong(truth, score)[0] for score in (a, b))
    (low, high), (other_low, other_high) = (newcombe(area, n_pos, n_neg, level) for area in (first, second))
    difference = first - second
    below, above = np.hypot(first - low, other_high - second), np.hypot(high - first, second - other_low)
    spread = (below if difference > 0 else above) / stats.norm.ppf((1 + level) / 2)
    p = float(2 * stats.norm.sf(abs(difference) / spread)) if difference else 1.0
    return AucTest(difference, (float(difference - below), float(difference + above)), p)


def auc_interval(labels: ArrayLike, scores: ArrayLike, level: float = 0.95) -> list[float] | None:
    """DeLong's interval of the AUC of independent cases, or ``newcombe`` where DeLong's reaches 0 or 1; None if a class has
    one case only.

    Near the edge few pairs are out of order, or none, and DeLong's variance is too small or 0: simulated with 30 cases of
    each class and a true area of 0.99, his interval covers it 75 times in 100.
    """
    area, variance = delong(labels, scores)
    if not np.isfinite(variance):
        return None
    half = stats.norm.ppf((1 + level) / 2) * np.sqrt(variance)
    if area - half > 0 and area + half < 1:
        return [float(area - half), float(area + half)]
    truth = np.asarray(labels, dtype=bool)
    return newcombe(area, int(truth.sum()), int((~truth).sum()), level)


def newcombe(area: float, n_pos: int, n_neg: int, level: float = 0.95) -> list[float]:
    """An interval of an AUC from its value and the numbers of cases alone, inside [0, 1] and never of no width.

    Newcombe 2006 (Stat Med 25:559, doi 10.1002/sim.2324), method 5: the areas whose own standard error, by Hanley and McNeil
    with the class sizes evened out, reaches the one observed.
    """
    z, evened = stats.norm.ppf((1 + level) / 2), (n_pos + n_neg) / 2 - 1

    def lowest(area: float) -> float:
        def beyond(true: float) -> float:
            factor = 1 + evened * ((1 - true) / (2 - true) + true / (1 + true))
            return area - true - z * np.sqrt(true * (1 - true) * factor / (n_pos * n_neg))

        return float(brentq(beyond, 0.0, area - 1e-12)) if area > 1e-12 else 0.0

    return [lowest(area), 1 - lowest(1 - area)]


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
