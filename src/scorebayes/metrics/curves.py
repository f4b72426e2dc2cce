"""Thresholds and curves. ``prob`` is [N, Y], or [N] for the positive class alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from scorebayes.errors import ConfigError
from scorebayes.metrics.intervals import clustered_bootstrap, wilson
from scorebayes.metrics.weighted import Array, cases_by_score, confidence_bins, positive_column


def choose_threshold(labels: ArrayLike, prob: ArrayLike, rule: str = "youden", *, positive: int = 1) -> float:
    """The threshold on the probability of ``positive`` that a rule picks; for validation cases only.

    ``youden``: highest sensitivity + specificity. ``accuracy``: most hits. ``sensitivity>=0.9`` (any number):
    the highest threshold that reaches it; ``specificity>=0.9``: the lowest. Thresholds lie midway between
    neighbouring probabilities. ConfigError for an unknown rule; ValueError where a class is absent.
    """
    truth, score = np.asarray(labels) == positive, positive_column(prob, positive)
    if truth.all() or not truth.any():
        raise ValueError("a threshold can be chosen only where both classes are present")
    values = np.unique(score)[::-1]
    positives, negatives = (weight[0] for weight in cases_by_score(truth, score, np.ones((1, len(score)))))
    # Candidate k calls the k highest distinct probabilities positive.
    middle = (values[:-1] + values[1:]) / 2
    middle = np.where(middle > values[1:], middle, values[:-1])  # neighbouring floats have no middle
    candidates = np.r_[np.nextafter(values[0], 2), middle, values[-1]]
    sensitivity = np.r_[0, positives.cumsum()] / truth.sum()
    specificity = 1 - np.r_[0, negatives.cumsum()] / (~truth).sum()
    bound = re.fullmatch(r"(sensitivity|specificity)\s*>=\s*(0?\.\d+|0|1|1\.0)", rule)
    if rule == "youden":
        return float(candidates[np.argmax(sensitivity + specificity)])
    if rule == "accuracy":
        prevalence = truth.mean()
        return float(candidates[np.argmax(prevalence * sensitivity + (1 - prevalence) * specificity)])
    if bound and bound[1] == "sensitivity":
        return float(candidates[np.argmax(sensitivity >= float(bound[2]) - 1e-12)])
    if bound:
        return float(candidates[np.flatnonzero(specificity >= float(bound[2]) - 1e-12)[-1]])
    raise ConfigError(
        f"Unknown threshold rule {rule!r}.",
        "Use 'youden', 'accuracy', 'sensitivity>=0.9' or 'specificity>=0.9' (any number from 0 to 1).",
    )


def reliability_curve(
    labels: ArrayLike, prob: ArrayLike, *, positive: int = 1, n_bins: int = 10, binning: str = "mass"
) -> dict[str, Array]:
    """Mean probability and observed frequency of ``positive`` in each bin that has cases.

    Keys ``predicted``, ``observed``, ``low``, ``high`` (Wilson), ``n``; arrays over the bins.
    """
    truth, score = np.asarray(labels) == positive, positive_column(prob, positive)
    bins = confidence_bins(score, binning, n_bins)
    rows = []
    for b in np.unique(bins):
        inside = bins == b
        interval = wilson(int(truth[inside].sum()), int(inside.sum())) or [np.nan, np.nan]
        rows.append((score[inside].mean(), truth[inside].mean(), *interval, inside.sum()))
    columns = np.array(rows, dtype=np.float64).reshape(-1, 5).T
    return dict(zip(("predicted", "observed", "low", "high", "n"), columns, strict=True))


def roc_curve(labels: ArrayLike, prob: ArrayLike, *, positive: int = 1) -> dict[str, Array]:
    """Operating points at each distinct score, the highest first.

    Keys ``false_positive_rate``, ``sensitivity``, ``precision``, ``threshold``. The first entry is the
    threshold above all scores, where nothing is called and precision is 1 by convention.
    """
    truth, score = np.asarray(labels) == positive, positive_column(prob, positive)
    positives, negatives = (weight[0] for weight in cases_by_score(truth, score, np.ones((1, len(score)))))
    called = np.r_[0, positives.cumsum()]
    alarms = np.r_[0, negatives.cumsum()]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "false_positive_rate": alarms / (~truth).sum(),
            "sensitivity": called / truth.sum(),
            "precision": np.where(called + alarms > 0, called / (called + alarms), 1.0),
            "threshold": np.r_[np.inf, np.unique(score)[::-1]],
        }


def roc_band(
    labels: ArrayLike,
    prob: ArrayLike,
    *,
    positive: int = 1,
    groups: Sequence | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
    n_points: int = 101,
) -> dict[str, Array]:
    """Pointwise 95 % bands of the ROC and the precision-recall curve, by the bootstrap over patients.

    Keys ``grid`` [G], ``sensitivity_low`` and ``sensitivity_high`` at false-positive rate = grid,
    ``precision_low`` and ``precision_high`` at recall = grid.
    """
    truth, score = np.asarray(labels) == positive, positive_column(prob, positive)
    grid = np.linspace(0, 1, n_points)

    def curves(weights: Array) -> Array:
        positives, negatives = cases_by_score(truth, score, weights)
        out = np.full((len(weights), 2, n_points), np.nan)
        for row, (called, alarms) in enumerate(zip(positives.cumsum(1), negatives.cumsum(1), strict=True)):
            if called[-1] and alarms[-1]:
                steps = np.searchsorted(alarms / alarms[-1], grid, side="right") - 1
                out[row, 0] = np.where(steps >= 0, called[steps] / called[-1], 0.0)
                first = np.searchsorted(called / called[-1], np.maximum(grid, 1e-9) - 1e-12)
                out[row, 1] = called[first] / (called[first] + alarms[first])
        return out

    draws = clustered_bootstrap(
        curves, range(len(truth)) if groups is None else groups, n_bootstrap=n_bootstrap, seed=seed
    )
    low, high = np.nanquantile(draws, [0.025, 0.975], axis=0)
    return {
        "grid": grid,
        "sensitivity_low": low[0],
        "sensitivity_high": high[0],
        "precision_low": low[1],
        "precision_high": high[1],
    }


def decision_curve(
    labels: ArrayLike, prob: ArrayLike, *, positive: int = 1, thresholds: ArrayLike | None = None
) -> dict[str, Array]:
    """Net benefit of acting on the probability (Vickers & Elkin 2006), on all cases and on none.

    Keys ``threshold``, ``model``, ``all``, ``none``; arrays over the thresholds (default 0.01 to 0.99). Net
    benefit is in true positives per case.
    """
    truth, score = np.asarray(labels) == positive, positive_column(prob, positive)
    t = np.linspace(0.01, 0.99, 99) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    acted = score[None] >= t[:, None]
    odds = t / (1 - t)
    return {
        "threshold": t,
        "model": (acted & truth).mean(1) - odds * (acted & ~truth).mean(1),
        "all": truth.mean() - odds * (~truth).mean(),
        "none": np.zeros_like(t),
    }


def risk_coverage(labels: ArrayLike, prob: ArrayLike) -> dict[str, Array]:
    """Share of wrong answers among the most confident cases, for every coverage.

    prob [N, Y]. Keys ``coverage`` and ``risk``, arrays over the distinct confidences; cases of equal
    confidence are answered together.
    """
    labels, prob = np.asarray(labels), np.asarray(prob, dtype=np.float64)
    confidence, wrong = prob.max(1), prob.argmax(1) != labels
    errors, hits = (weight[0] for weight in cases_by_score(wrong, confidence, np.ones((1, len(labels)))))
    answered = (errors + hits).cumsum()
    return {"coverage": answered / max(1, len(labels)), "risk": errors.cumsum() / answered}
