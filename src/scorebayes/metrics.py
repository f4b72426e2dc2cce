"""How good are the probabilities? Discrimination, calibration and usefulness, each with its 95 % interval.

Every metric is written once, for weighted cases: the point estimate is the value at weights of one, a
bootstrap replicate the value at the number of times that each patient was drawn. Thousands of replicates are
thereby a few array operations. A metric that is not defined for the cases at hand (one class only) is None
with a reason, never a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from scorebayes.errors import ConfigError, NumericalError

Array = NDArray[np.float64]
Metrics = dict[str, float | int | str | list[float] | None]

_CHUNK = 2_000_000  # weights held at once, so that memory does not grow with the number of images
_LOWEST_PROB = float(np.finfo(np.float64).eps)  # as scikit-learn's log_loss
SATURATED = 0.999  # a probability beyond it leaves no doubt
_MIN_DEFINED = 0.95  # share of bootstrap replicates in which a metric must exist to get an interval


# --------------------------------------------------------------------------------------------------
# All metrics at once


def classification_metrics(
    labels: ArrayLike,
    prob: ArrayLike,
    *,
    positive: int = 1,
    groups: Sequence | None = None,
    threshold: float | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Metrics:
    """Every metric of the report as a flat dictionary, ready for JSON.

    ``<name>_ci95`` holds [low, high]: DeLong for the AUC and Wilson for proportions when the cases are
    independent; otherwise, and for all other metrics, the percentiles of a bootstrap that draws whole
    patients. A metric without a value is None, and ``<name>_reason`` says why. ``ece_by_chance`` is the expected
    ``ece`` of these very probabilities if they were right.

    With more than two classes ``auc`` and ``auprc`` are the mean of one class against the rest; sensitivity,
    specificity, predictive values, calibration slope and intercept speak of ``positive`` against the rest.

    Parameters
    ----------
    labels: [N], class indices.
    prob: [N, Y], rows sum to 1.
    positive: class index that sensitivity speaks of.
    groups: [N], patient of each image; None, "" or NaN where unknown (such an image stands for itself).
    threshold: on the probability of ``positive``, frozen beforehand; None decides by the most probable class.
    """
    sample = _Sample.checked(labels, prob, positive, threshold)
    clusters = None if groups is None else _clusters(groups)
    clustered = clusters is not None and int(clusters.max(initial=-1)) + 1 < sample.n
    with np.errstate(divide="ignore", invalid="ignore"):
        undefined = sample.undefined()
        point = {name: float(value[0]) for name, value in sample.statistics(np.ones((1, sample.n))).items()}
        replicates = _replicates(sample, clusters, n_bootstrap, seed)

    out: Metrics = {
        "n": sample.n,
        "n_patients": None if clusters is None else int(clusters.max(initial=-1)) + 1,
        "prevalence": float(np.mean(sample.labels == positive)) if sample.n else None,
    }
    for name, value in point.items():
        reason = undefined.get(name, "" if np.isfinite(value) else _why_infinite(name))
        out[name] = None if reason else value
        if reason:
            out[f"{name}_reason"] = reason
            continue
        # DeLong's method knows two classes only; the mean over more is bootstrapped.
        bootstrapped = clustered or name not in _CLOSED_FORM or (name == "auc" and sample.n_classes > 2)
        interval = (
            _percentiles(replicates.get(name, np.zeros(0))) if bootstrapped else _CLOSED_FORM[name](sample)
        )
        out[f"{name}_ci95"] = interval
        if interval is None:
            out[f"{name}_ci95_reason"] = "too few cases of a class or prediction"
    out["ece_by_chance"] = _ece_by_chance(sample, seed) if sample.n else None
    out["interval_method"] = (
        "bootstrap over patients" if clustered else "DeLong (AUC), Wilson (proportions), bootstrap over cases"
    )
    out["n_bootstrap"] = n_bootstrap
    return out


def _why_infinite(name: str) -> str:
    if name in ("calibration_slope", "calibration_intercept"):
        return "the probabilities separate the classes perfectly or are all equal"
    if name in ("ppv", "npv"):
        return "no case was predicted so"
    if name == "saturated_accuracy":
        return f"no probability is beyond {SATURATED}"
    return "one of the classes has no case"


@dataclass(frozen=True)
class _Sample:
    """Checked labels [N] and probabilities [N, Y], and every metric as a function of case weights [R, N]."""

    labels: NDArray[np.int64]
    prob: Array
    positive: int
    threshold: float | None

    @classmethod
    def checked(cls, labels: ArrayLike, prob: ArrayLike, positive: int, threshold: float | None) -> _Sample:
        labels = np.asarray(labels, dtype=np.int64)
        prob = np.asarray(prob, dtype=np.float64)
        if prob.ndim != 2 or labels.shape != prob.shape[:1] or prob.shape[1] < 2:
            raise ValueError(f"expected labels [N] and prob [N, Y >= 2], got {labels.shape} and {prob.shape}")
        if not np.isfinite(prob).all() or (prob < 0).any() or (np.abs(prob.sum(1) - 1) > 1e-6).any():
            raise NumericalError(
                "The class probabilities are not finite, not in [0, 1] or do not sum to 1.",
                "Leave out the images whose status is not 'ok' before computing metrics.",
            )
        if not 0 <= positive < prob.shape[1] or ((labels < 0) | (labels >= prob.shape[1])).any():
            raise ValueError(f"class indices must lie in 0 .. {prob.shape[1] - 1}")
        return cls(labels, prob, positive, threshold)

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    def n_classes(self) -> int:
        return self.prob.shape[1]

    @property
    def truth(self) -> NDArray[np.bool_]:
        """[N], whether the case is of the class ``positive``."""
        return self.labels == self.positive

    @property
    def score(self) -> Array:
        """[N], probability of the class ``positive``."""
        return self.prob[:, self.positive]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """[N], predicted class; the threshold decides between two classes only."""
        if self.threshold is None or self.n_classes > 2:
            return self.prob.argmax(1)
        return np.where(self.score >= self.threshold, self.positive, 1 - self.positive)

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """[N], whether the case is called positive."""
        return self.predicted == self.positive if self.threshold is None else self.score >= self.threshold

    @property
    def named(self) -> NDArray[np.bool_]:
        """[N], whether the most probable class is the true one."""
        return self.prob.argmax(1) == self.labels

    @property
    def saturated(self) -> NDArray[np.bool_]:
        """[N], whether a class has a probability that leaves no doubt."""
        return self.prob.max(1) > SATURATED

    @property
    def majority(self) -> NDArray[np.bool_]:
        """[N], whether always naming the most frequent class would be right."""
        return self.labels == np.bincount(self.labels, minlength=self.n_classes).argmax()

    def undefined(self) -> dict[str, str]:
        """Metric name -> why it has no value for these cases."""
        if self.n == 0:
            return dict.fromkeys(self.statistics(np.ones((1, 0))), "no cases")
        out: dict[str, str] = {}
        if len(np.unique(self.labels)) < 2:
            out |= dict.fromkeys(("auc", "auprc", "balanced_accuracy", "mcc"), "only one class is present")
        if self.truth.all() or not self.truth.any():
            names = ("sensitivity_at_90_specificity", "calibration_slope", "calibration_intercept")
            out |= dict.fromkeys(names, "only one class is present")
            out["specificity" if self.truth.all() else "sensitivity"] = "no such case is present"
        return out

    def statistics(self, weights: Array) -> dict[str, Array]:
        """Case weights [R, N] -> every metric [R]; NaN where it is not defined."""
        total = weights.sum(1)
        one_hot = np.eye(self.n_classes)[self.labels]
        hit = self.predicted == self.labels
        out: dict[str, Array] = {}

        classes = [self.positive] if self.n_classes == 2 else range(self.n_classes)
        curves = {c: _curve(self.labels == c, self.prob[:, c], weights) for c in {*classes, self.positive}}
        out["auc"] = np.mean([_auc(*curves[c]) for c in classes], axis=0)
        out["auprc"] = np.mean([_average_precision(*curves[c]) for c in classes], axis=0)

        out["accuracy"] = weights @ hit / total
        out["majority_accuracy"] = weights @ self.majority / total
        confusion = _confusion(self.labels, self.predicted, self.n_classes, weights)
        recall = np.diagonal(confusion, axis1=1, axis2=2) / confusion.sum(2)
        present = np.isfinite(recall)
        out["balanced_accuracy"] = np.where(present, recall, 0).sum(1) / present.sum(1)
        out["mcc"] = _mcc(confusion)

        true_prob = np.clip(self.prob[np.arange(self.n), self.labels], _LOWEST_PROB, 1)
        squared = np.square(self.prob - one_hot).sum(1) / (2 if self.n_classes == 2 else 1)
        out["log_loss"] = weights @ -np.log(true_prob) / total
        out["brier"] = weights @ squared / total
        out["ece"] = _ece(*_confidence(self), weights, "mass", 10)

        out["saturated"] = weights @ self.saturated / total
        out["saturated_accuracy"] = weights @ (self.saturated & self.named) / (weights @ self.saturated)

        truth, flagged = self.truth, self.flagged
        out["sensitivity"] = weights @ (truth & flagged) / (weights @ truth)
        out["specificity"] = weights @ (~truth & ~flagged) / (weights @ ~truth)
        out["ppv"] = weights @ (truth & flagged) / (weights @ flagged)
        out["npv"] = weights @ (~truth & ~flagged) / (weights @ ~flagged)
        out["sensitivity_at_90_specificity"] = _sensitivity_at(*curves[self.positive], specificity=0.9)
        slope, intercept = _calibration_line(truth, self.score, weights, _auc(*curves[self.positive]))
        out["calibration_slope"], out["calibration_intercept"] = slope, intercept
        return out


# --------------------------------------------------------------------------------------------------
# Weighted metrics: truth [N] bool, score [N], weights [R, N] -> [R]


def _curve(truth: NDArray[np.bool_], score: Array, weights: Array) -> tuple[Array, Array]:
    """Weights of positive and of negative cases at each distinct score, the highest first: [R, U] twice."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(score) else np.zeros(0, int)
    shuffled = weights[:, order]
    positives = shuffled * truth[order]
    if len(first) == len(score):
        return positives, shuffled - positives
    return np.add.reduceat(positives, first, axis=1), np.add.reduceat(shuffled - positives, first, axis=1)


def _auc(positives: Array, negatives: Array) -> Array:
    """Probability that a positive case scores above a negative one, ties counting one half."""
    above = positives.cumsum(1) - 0.5 * positives
    return (above * negatives).sum(1) / (positives.sum(1) * negatives.sum(1))


def _average_precision(positives: Array, negatives: Array) -> Array:
    """Sum over the scores of precision times the rise of recall."""
    called = positives.cumsum(1)
    precision = called / np.maximum(called + negatives.cumsum(1), 1e-300)
    return (precision * positives).sum(1) / positives.sum(1)


def _sensitivity_at(positives: Array, negatives: Array, specificity: float) -> Array:
    """Highest sensitivity of any threshold whose specificity is at least the one asked for."""
    allowed = negatives.cumsum(1) <= (1 - specificity + 1e-12) * negatives.sum(1)[:, None]
    return np.where(allowed, positives.cumsum(1), 0).max(1, initial=0) / positives.sum(1)


def _confusion(labels: NDArray, predicted: NDArray, n_classes: int, weights: Array) -> Array:
    """[R, Y, Y], rows are the true classes."""
    cell = np.eye(n_classes**2)[labels * n_classes + predicted]
    return (weights @ cell).reshape(-1, n_classes, n_classes)


def _mcc(confusion: Array) -> Array:
    """Matthews correlation (Gorodkin 2004 for more than two classes); 0 where all predictions are equal."""
    true, called, total = confusion.sum(2), confusion.sum(1), confusion.sum((1, 2))
    covariance = total * np.trace(confusion, axis1=1, axis2=2) - (true * called).sum(1)
    spread = (total**2 - (true**2).sum(1)) * (total**2 - (called**2).sum(1))
    return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)


def _confidence(sample: _Sample) -> tuple[Array, NDArray[np.bool_]]:
    """What is binned, and whether it came true: the probability of ``positive``, or of the top class."""
    if sample.n_classes == 2:
        return sample.score, sample.truth
    return sample.prob.max(1), sample.prob.argmax(1) == sample.labels


def _bins(confidence: Array, binning: str, n_bins: int) -> NDArray[np.int64]:
    """[N], bin of each case; equal confidences share a bin."""
    if binning == "width":
        return np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)
    inner = (
        np.unique(np.quantile(confidence, np.arange(1, n_bins) / n_bins)) if len(confidence) else np.zeros(0)
    )
    return np.searchsorted(inner, confidence, side="right")


def _ece(confidence: Array, hit: NDArray[np.bool_], weights: Array, binning: str, n_bins: int) -> Array:
    membership = np.eye(n_bins)[_bins(confidence, binning, n_bins)]
    return np.abs(weights @ (membership * (confidence - hit)[:, None])).sum(1) / weights.sum(1)


def _ece_by_chance(sample: _Sample, seed: int, n_simulations: int = 1000) -> float:
    """Mean ECE where the outcomes are drawn from the probabilities themselves (consistency resampling, Bröcker & Smith
    2007, Weather and Forecasting 22:651)."""
    confidence = np.sort(_confidence(sample)[0])  # the order of the images must not choose the draws
    rng = np.random.default_rng(seed)
    membership = np.eye(10)[_bins(confidence, "mass", 10)]
    size = max(1, _CHUNK // sample.n)
    found = []
    for start in range(0, n_simulations, size):
        drawn = rng.random((min(size, n_simulations - start), sample.n)) < confidence
        found.append(np.abs((confidence - drawn) @ membership).sum(1) / sample.n)
    return float(np.concatenate(found).mean())


def _calibration_line(
    truth: NDArray[np.bool_], score: Array, weights: Array, auc: Array
) -> tuple[Array, Array]:
    """Slope of the outcome on logit(score), and the intercept that is left when the slope is 1; [R] each.

    Newton's method on all replicates together. Van Calster et al. 2019, BMC Medicine 17:230: slope 1 and
    intercept 0 are ideal; a slope below 1 means probabilities that are too extreme.
    """
    nothing = np.full(len(weights), np.nan)
    if truth.all() or not truth.any():
        return nothing, nothing
    clipped = np.clip(score, _LOWEST_PROB, 1 - _LOWEST_PROB)
    logit = np.log(clipped) - np.log1p(-clipped)
    scale = float(logit.std())
    intercept = _newton(truth, np.ones((len(score), 1)), logit, weights)[:, 0]
    if scale < 1e-9:
        return nothing, intercept
    design = np.stack([np.ones_like(logit), (logit - logit.mean()) / scale], axis=1)
    slope = _newton(truth, design, np.zeros_like(logit), weights)[:, 1] / scale
    return np.where((auc > 0) & (auc < 1), slope, np.nan), intercept


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


# --------------------------------------------------------------------------------------------------
# Intervals


def clustered_bootstrap(
    statistic: Callable[[Array], Array],
    groups: Sequence,
    *,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Array:
    """Draws whole patients with replacement and returns the statistic of every replicate, [n_bootstrap, ...].

    ``statistic`` takes case weights [R, N], how often the patient of each case was drawn, and returns one
    row for each of the R replicates.
    """
    weights = _draw_weights(_clusters(groups), n_bootstrap, seed)
    return np.concatenate([np.asarray(statistic(block), dtype=np.float64) for block in weights])


def _clusters(groups: Sequence) -> NDArray[np.int64]:
    """[N], number of the patient of each case; a case without a known patient gets a number of its own."""
    numbers: dict[object, int] = {}
    out = np.empty(len(groups), dtype=np.int64)
    for row, group in enumerate(groups):
        unknown = group is None or group == "" or group != group
        out[row] = numbers.setdefault(("case", row) if unknown else ("patient", group), len(numbers))
    return out


def _draw_weights(clusters: NDArray[np.int64], n_bootstrap: int, seed: int) -> Iterator[Array]:
    """Blocks [R, N] of case weights, n_bootstrap rows in all."""
    rng = np.random.default_rng(seed)
    n_clusters = int(clusters.max(initial=-1)) + 1
    step = max(1, _CHUNK // max(1, len(clusters)))
    for start in range(0, n_bootstrap, step):
        rows = min(step, n_bootstrap - start)
        drawn = rng.integers(0, max(1, n_clusters), (rows, n_clusters))
        cell = drawn + n_clusters * np.arange(rows)[:, None]
        counts = np.bincount(cell.ravel(), minlength=rows * n_clusters).reshape(rows, n_clusters)
        yield counts[:, clusters].astype(np.float64)


def _replicates(
    sample: _Sample, clusters: NDArray[np.int64] | None, n_bootstrap: int, seed: int
) -> dict[str, Array]:
    if clusters is None:
        clusters = np.arange(sample.n)
    blocks = [sample.statistics(weights) for weights in _draw_weights(clusters, n_bootstrap, seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in (blocks[0] if blocks else {})}


def _percentiles(replicates: Array, level: float = 0.95) -> list[float] | None:
    """The central ``level`` of the replicates, or None where too many of them are not defined."""
    defined = replicates[np.isfinite(replicates)]
    if not len(defined) or len(defined) < _MIN_DEFINED * len(replicates):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def wilson(successes: int, n: int, level: float = 0.95) -> list[float] | None:
    """Wilson's interval of a proportion of independent cases; None for n = 0."""
    if n == 0:
        return None
    interval = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return [float(interval.low), float(interval.high)]


def _share(hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> list[float] | None:
    return wilson(int((hits & among).sum()), int(among.sum()))


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


_CLOSED_FORM: dict[str, Callable[[_Sample], list[float] | None]] = {
    "auc": lambda s: auc_interval(s.truth, s.score),
    "accuracy": lambda s: _share(s.predicted == s.labels, np.ones(s.n, bool)),
    "majority_accuracy": lambda s: _share(s.majority, np.ones(s.n, bool)),
    "sensitivity": lambda s: _share(s.flagged, s.truth),
    "specificity": lambda s: _share(~s.flagged, ~s.truth),
    "ppv": lambda s: _share(s.truth, s.flagged),
    "npv": lambda s: _share(~s.truth, ~s.flagged),
    "saturated": lambda s: _share(s.saturated, np.ones(s.n, bool)),
    "saturated_accuracy": lambda s: _share(s.named, s.saturated),
}


# --------------------------------------------------------------------------------------------------
# DeLong, comparisons


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


def compare(
    labels: ArrayLike,
    prob: ArrayLike,
    prob_other: ArrayLike,
    *,
    positive: int = 1,
    groups: Sequence | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Metrics:
    """AUC of ``positive`` against the rest, minus that of another model on the same cases.

    ``auc_difference``, ``auc_difference_ci95`` and ``auc_difference_p`` by DeLong where every patient has one
    image, otherwise by the bootstrap over patients. None, with a reason, where one class is absent.
    """
    truth = np.asarray(labels) == positive
    a, b = _positive_column(prob, positive), _positive_column(prob_other, positive)
    if truth.all() or not truth.any():
        return {"auc_difference": None, "auc_difference_reason": "only one class is present"}
    clusters = None if groups is None else _clusters(groups)
    if clusters is None or int(clusters.max()) + 1 == len(truth):
        test, method = delong_test(truth, a, b), "DeLong"
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = clustered_bootstrap(
                lambda w: _auc(*_curve(truth, a, w)) - _auc(*_curve(truth, b, w)),
                list(clusters),
                n_bootstrap=n_bootstrap,
                seed=seed,
            )
        draws = draws[np.isfinite(draws)]
        ones = np.ones((1, len(truth)))
        difference = float((_auc(*_curve(truth, a, ones)) - _auc(*_curve(truth, b, ones)))[0])
        # A p-value of zero cannot come from finitely many replicates: count the observed one too.
        tail = min((draws <= 0).sum(), (draws >= 0).sum()) + 1
        low, high = _percentiles(draws) or (np.nan, np.nan)
        test = AucTest(difference, (low, high), float(min(1.0, 2 * tail / (len(draws) + 1))))
        method = "bootstrap over patients"
    return {
        "auc_difference": test.difference,
        "auc_difference_ci95": list(test.interval),
        "auc_difference_p": test.p,
        "auc_difference_method": method,
    }


def predictive_values(at_threshold: Mapping, prevalences: ArrayLike) -> list[Metrics]:
    """PPV and NPV that sensitivity and specificity of a decision would have at other prevalences.

    at_threshold: metrics with ``sensitivity``, ``specificity`` and their intervals. Returns for each prevalence
    ``prevalence``, ``ppv``, ``npv`` and ``<name>_ci95``, by Bayes' rule from the likelihood ratios, whose
    intervals are recovered from those of the rates (MOVER-R, Newcombe 2016, Stat Methods Med Res 25:1774).
    It holds where only the prevalence differs, and the images of either class are as they are here. Empty
    where a rate or its interval is absent.
    """
    found: list[tuple[float, float, float]] = []
    for name in ("sensitivity", "specificity"):
        value, interval = at_threshold.get(name), at_threshold.get(f"{name}_ci95")
        if value is None or interval is None:
            return []
        found.append((value, interval[0], interval[1]))
    missed, alarmed = [(1 - value, 1 - high, 1 - low) for value, low, high in found]
    rows: list[Metrics] = []
    for prevalence in np.asarray(prevalences, dtype=np.float64):
        row: Metrics = {"prevalence": float(prevalence)}
        # PPV rises with sensitivity / (1 - specificity), NPV falls with (1 - sensitivity) / specificity.
        for name, ratios, prior in (
            ("ppv", _ratio(found[0], alarmed), prevalence),
            ("npv", _ratio(found[1], missed), 1 - prevalence),
        ):
            value, low, high = (_bayes_share(ratio, prior) for ratio in ratios)
            row |= {name: value, f"{name}_ci95": [low, high]}
        rows.append(row)
    return rows


def _bayes_share(ratio: float, prior: float) -> float:
    return 1.0 if np.isinf(ratio) else float(prior * ratio / (prior * ratio + 1 - prior))


def _ratio(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float, float]:
    """Ratio of two independent rates, each (value, low, high), with its interval by MOVER-R."""
    (x, x_low, x_high), (y, y_low, y_high) = a, b
    product = x * y
    # The lower bound multiplied by its conjugate, which has no pole at y_high = 2 y.
    root = np.sqrt(max(0.0, product**2 - x_low * y_high * (2 * x - x_low) * (2 * y - y_high)))
    low = x_low * (2 * x - x_low) / (product + root) if product + root > 0 else 0.0
    root = np.sqrt(max(0.0, product**2 - x_high * y_low * (2 * x - x_high) * (2 * y - y_low)))
    high = (product + root) / (y_low * (2 * y - y_low)) if y_low * (2 * y - y_low) > 0 else np.inf
    return (x / y if y > 0 else np.inf), float(low), float(high)


def holm(pvalues: ArrayLike) -> Array:
    """P-values adjusted for their number by Holm's step-down rule (1979), in the order given."""
    p = np.asarray(pvalues, dtype=np.float64)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1.0)
    return out


# --------------------------------------------------------------------------------------------------
# Thresholds and curves. ``prob`` is [N, Y], or [N] for the positive class alone.


def choose_threshold(labels: ArrayLike, prob: ArrayLike, rule: str = "youden", *, positive: int = 1) -> float:
    """The threshold on the probability of ``positive`` that a rule picks; for validation cases only.

    ``youden``: highest sensitivity + specificity. ``accuracy``: most hits. ``sensitivity>=0.9`` (any number):
    the highest threshold that reaches it; ``specificity>=0.9``: the lowest. Thresholds lie midway between
    neighbouring probabilities. ConfigError for an unknown rule; ValueError where a class is absent.
    """
    truth, score = np.asarray(labels) == positive, _positive_column(prob, positive)
    if truth.all() or not truth.any():
        raise ValueError("a threshold can be chosen only where both classes are present")
    values = np.unique(score)[::-1]
    positives, negatives = (weight[0] for weight in _curve(truth, score, np.ones((1, len(score)))))
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


def _positive_column(prob: ArrayLike, positive: int) -> Array:
    prob = np.asarray(prob, dtype=np.float64)
    return prob if prob.ndim == 1 else prob[:, positive]


def ece(
    labels: ArrayLike,
    prob: ArrayLike,
    *,
    positive: int = 1,
    n_bins: int = 10,
    binning: Literal["mass", "width"] = "mass",
) -> float:
    """Expected calibration error: mean distance between probability and observed frequency over bins.

    Two classes: of the probability of ``positive``; more: of the highest probability. ``mass`` puts equally
    many cases in each bin, ``width`` cuts [0, 1] evenly. It is above zero even for a perfect model, by
    chance: see ``ece_by_chance`` in ``classification_metrics``.
    """
    sample = _Sample.checked(labels, prob, positive, None)
    return float(_ece(*_confidence(sample), np.ones((1, sample.n)), binning, n_bins)[0])


def reliability_curve(
    labels: ArrayLike, prob: ArrayLike, *, positive: int = 1, n_bins: int = 10, binning: str = "mass"
) -> dict[str, Array]:
    """Mean probability and observed frequency of ``positive`` in each bin that has cases.

    Keys ``predicted``, ``observed``, ``low``, ``high`` (Wilson), ``n``; arrays over the bins.
    """
    truth, score = np.asarray(labels) == positive, _positive_column(prob, positive)
    bins = _bins(score, binning, n_bins)
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
    truth, score = np.asarray(labels) == positive, _positive_column(prob, positive)
    positives, negatives = (weight[0] for weight in _curve(truth, score, np.ones((1, len(score)))))
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
    truth, score = np.asarray(labels) == positive, _positive_column(prob, positive)
    grid = np.linspace(0, 1, n_points)

    def curves(weights: Array) -> Array:
        positives, negatives = _curve(truth, score, weights)
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
    truth, score = np.asarray(labels) == positive, _positive_column(prob, positive)
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
    errors, hits = (weight[0] for weight in _curve(wrong, confidence, np.ones((1, len(labels)))))
    answered = (errors + hits).cumsum()
    return {"coverage": answered / max(1, len(labels)), "risk": errors.cumsum() / answered}
