"""Metrics of weighted cases: truth [N] bool, score [N], weights [R, N] -> [R], one value for each set of weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Metrics = dict[str, float | int | str | list[float] | None]

LOWEST_PROB = float(np.finfo(np.float64).eps)  # as scikit-learn's log_loss


def positive_column(prob: ArrayLike, positive: int) -> Array:
    """[N, Y], or [N] already -> [N]."""
    prob = np.asarray(prob, dtype=np.float64)
    return prob if prob.ndim == 1 else prob[:, positive]


def cases_by_score(truth: NDArray[np.bool_], score: Array, weights: Array) -> tuple[Array, Array]:
    """Weights of positive and of negative cases at each distinct score, the highest first: [R, U] twice."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(score) else np.zeros(0, int)
    shuffled = weights[:, order]
    positives = shuffled * truth[order]
    if len(first) == len(score):
        return positives, shuffled - positives
    return np.add.reduceat(positives, first, axis=1), np.add.reduceat(shuffled - positives, first, axis=1)


def auc(positives: Array, negatives: Array) -> Array:
    """Probability that a positive case scores above a negative one, ties counting one half."""
    above = positives.cumsum(1) - 0.5 * positives
    return (above * negatives).sum(1) / (positives.sum(1) * negatives.sum(1))


def average_precision(positives: Array, negatives: Array) -> Array:
    """Sum over the scores of precision times the rise of recall."""
    called = positives.cumsum(1)
    precision = called / np.maximum(called + negatives.cumsum(1), 1e-300)
    return (precision * positives).sum(1) / positives.sum(1)


def sensitivity_at(positives: Array, negatives: Array, specificity: float) -> Array:
    """Highest sensitivity of any threshold whose specificity is at least the one asked for."""
    allowed = negatives.cumsum(1) <= (1 - specificity + 1e-12) * negatives.sum(1)[:, None]
    return np.where(allowed, positives.cumsum(1), 0).max(1, initial=0) / positives.sum(1)


def confusion_matrices(labels: NDArray, predicted: NDArray, n_classes: int, weights: Array) -> Array:
    """[R, Y, Y], rows are the true classes."""
    cell = np.eye(n_classes**2)[labels * n_classes + predicted]
    return (weights @ cell).reshape(-1, n_classes, n_classes)


def matthews(confusion: Array) -> Array:
    """Matthews correlation (Gorodkin 2004 for more than two classes); 0 where all predictions are equal."""
    true, called, total = confusion.sum(2), confusion.sum(1), confusion.sum((1, 2))
    covariance = total * np.trace(confusion, axis1=1, axis2=2) - (true * called).sum(1)
    spread = (total**2 - (true**2).sum(1)) * (total**2 - (called**2).sum(1))
    return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)


def confidence_bins(confidence: Array, binning: str, n_bins: int) -> NDArray[np.int64]:
    """[N], bin of each case; equal confidences share a bin."""
    if binning == "width":
        return np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    inner = (
        np.unique(np.quantile(confidence, np.arange(1, n_bins) / n_bins)) if len(confidence) else np.zeros(0)
    )
    return np.searchsorted(inner, confidence, side="right")


def calibration_error(
    confidence: Array, hit: NDArray[np.bool_], weights: Array, binning: str, n_bins: int
) -> Array:
    """Mean distance between confidence and share of hits over the bins."""
    membership = np.eye(n_bins)[confidence_bins(confidence, binning, n_bins)]
    return np.abs(weights @ (membership * (confidence - hit)[:, None])).sum(1) / weights.sum(1)


def calibration_line(
    truth: NDArray[np.bool_], score: Array, weights: Array, area: Array
) -> tuple[Array, Array]:
    """Slope of the outcome on logit(score), and the intercept that is left when the slope is 1; [R] each.

    Newton's method on all replicates together. Van Calster et al. 2019, BMC Medicine 17:230: slope 1 and
    intercept 0 are ideal; a slope below 1 means probabilities that are too extreme.
    """
    nothing = np.full(len(weights), np.nan)
    if truth.all() or not truth.any():
        return nothing, nothing
    clipped = np.clip(score, LOWEST_PROB, 1 - LOWEST_PROB)
    logit = np.log(clipped) - np.log1p(-clipped)
    scale = float(logit.std())
    intercept = _newton(truth, np.ones((len(score), 1)), logit, weights)[:, 0]
    if scale < 1e-9:
        return nothing, intercept
    design = np.stack([np.ones_like(logit), (logit - logit.mean()) / scale], axis=1)
    slope = _newton(truth, design, np.zeros_like(logit), weights)[:, 1] / scale
    return np.where((area > 0) & (area < 1), slope, np.nan), intercept


def _newton(truth: NDArray[np.bool_], design: Array, offset: Array, weights: Array) -> Array:
    """Logistic regression of every replicate: design [N, P], offset [N], weights [R, N] -> [R, P].

    NaN where it does not converge, as when the classes are separable.
    """
    coefficients = np.zeros((len(weights), design.shape[1]))
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    for _ in range(25):
        prob = 0.5 * (1 + np.tanh(0.5 * (coefficients @ design.T + offset)))
        gradient = (weights * (truth - prob)) @ design
        hessian = ((weights * prob * (1 - prob)) @ products).reshape(-1, design.shape[1], design.shape[1])
        ridge = 1e-9 * np.eye(design.shape[1])
        step = np.linalg.solve(hessian + ridge, gradient[:, :, None])[:, :, 0]
        coefficients += np.clip(step, -2, 2)  # longer steps overshoot where the probabilities are saturated
        if np.abs(step).max(initial=0) < 1e-8:
            break
    return np.where(np.abs(step).max(1, keepdims=True) < 1e-4, coefficients, np.nan)
