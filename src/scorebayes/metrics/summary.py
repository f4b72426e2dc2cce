"""All metrics of a set of answers at once, each with its 95 % interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorebayes.errors import NumericalError
from scorebayes.metrics.areas import auc_interval, newcombe
from scorebayes.metrics.intervals import CHUNK, draw_weights, patient_numbers, percentiles, wilson
from scorebayes.metrics.weighted import (
    LOWEST_PROB,
    Array,
    Metrics,
    auc,
    average_precision,
    calibration_error,
    calibration_line,
    cases_by_score,
    confidence_bins,
    confusion_matrices,
    matthews,
    sensitivity_at,
)

SATURATED = 0.999  # a probability beyond it leaves no doubt
_EDGE = 1e-12  # this near to 0 or 1 is there, but for rounding


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
    patients. Where these percentiles reach 0 or 1, resampling the few errors there are says too little: then Newcombe
    for the AUC and Wilson for proportions, with each patient as one case. A metric without a value or an interval is
    None, and ``<name>_reason`` or ``<name>_ci95_reason`` says why. ``ece_by_chance`` is the expected ``ece`` of these very
    probabilities if they were right.

    With more than two classes ``auc`` and ``auprc`` are the mean of one class against the rest; sensitivity,
    specificity, predictive values, calibration slope and intercept are for ``positive`` against the rest.

    Parameters
    ----------
    labels: [N], class indices.
    prob: [N, Y], rows sum to 1.
    positive: index of the class that sensitivity refers to.
    groups: [N], patient of each image; None, "" or NaN where unknown (such an image counts as its own patient).
    threshold: on the probability of ``positive``, frozen beforehand; None decides by the most probable class.
    """
    sample = _Sample.checked(labels, prob, positive, threshold)
    clusters = None if groups is None else patient_numbers(groups)
    n_patients = None if clusters is None else int(clusters.max(initial=-1)) + 1
    clustered = n_patients is not None and n_patients < sample.n
    with np.errstate(divide="ignore", invalid="ignore"):
        undefined = sample.undefined()
        point = {name: float(value[0]) for name, value in sample.statistics(np.ones((1, sample.n))).items()}
        replicates = _replicates(sample, clusters, n_bootstrap, seed)

    out: Metrics = {
        "n": sample.n,
        "n_patients": n_patients,
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
        if bootstrapped:
            interval, why = _bootstrapped(sample, name, value, replicates.get(name, np.zeros(0)), clusters)
        else:
            interval, why = _CLOSED_FORM[name](sample), _FEW
        out[f"{name}_ci95"] = interval
        if interval is None:
            out[f"{name}_ci95_reason"] = why
    out["ece_by_chance"] = _ece_by_chance(sample, seed) if sample.n else None
    out["interval_method"] = (
        "bootstrap over patients" if clustered else "DeLong (AUC), Wilson (proportions), bootstrap over cases"
    )
    out["n_bootstrap"] = n_bootstrap
    return out


def _bootstrapped(
    sample: _Sample, name: str, value: float, replicates: Array, clusters: NDArray[np.int64] | None
) -> tuple[list[float] | None, str]:
    """The interval of a metric by its replicates and, where they reach the edge, by the numbers of patients, whichever is
    wider; or None, with the reason."""
    interval = percentiles(replicates)
    if interval is None or (interval[0] > _EDGE and interval[1] < 1 - _EDGE):
        return interval, _FEW
    if name in _AT_THE_EDGE:
        own = np.arange(sample.n) if clusters is None else clusters
        low, high = _AT_THE_EDGE[name](sample, own, value) or interval
        return [min(low, interval[0]), max(high, interval[1])], _FEW
    if interval[0] == interval[1]:
        return (
            None,
            "all replicates of the bootstrap are equal: they cannot show how far the value may be off",
        )
    return interval, _FEW


def _why_infinite(name: str) -> str:
    if name in ("calibration_slope", "calibration_intercept"):
        return "the probabilities separate the classes perfectly or are all equal"
    if name in ("ppv", "npv"):
        return "no case was predicted this way"
    if name == "saturated_accuracy":
        return f"no probability is beyond {SATURATED}"
    return "one of the classes has no case"


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
    return float(calibration_error(*_confidence(sample), np.ones((1, sample.n)), binning, n_bins)[0])


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
            out["specificity" if self.truth.all() else "sensitivity"] = "there is no such case"
        return out

    def statistics(self, weights: Array) -> dict[str, Array]:
        """Case weights [R, N] -> every metric [R]; NaN where it is not defined."""
        total = weights.sum(1)
        one_hot = np.eye(self.n_classes)[self.labels]
        hit = self.predicted == self.labels
        out: dict[str, Array] = {}

        classes = [self.positive] if self.n_classes == 2 else range(self.n_classes)
        curves = {
            c: cases_by_score(self.labels == c, self.prob[:, c], weights) for c in {*classes, self.positive}
        }
        out["auc"] = np.mean([auc(*curves[c]) for c in classes], axis=0)
        out["auprc"] = np.mean([average_precision(*curves[c]) for c in classes], axis=0)

        out["accuracy"] = weights @ hit / total
        out["majority_accuracy"] = weights @ self.majority / total
        confusion = confusion_matrices(self.labels, self.predicted, self.n_classes, weights)
        recall = np.diagonal(confusion, axis1=1, axis2=2) / confusion.sum(2)
        present = np.isfinite(recall)
        out["balanced_accuracy"] = np.where(present, recall, 0).sum(1) / present.sum(1)
        out["mcc"] = matthews(confusion)

        true_prob = np.clip(self.prob[np.arange(self.n), self.labels], LOWEST_PROB, 1)
        squared = np.square(self.prob - one_hot).sum(1) / (2 if self.n_classes == 2 else 1)
        out["log_loss"] = weights @ -np.log(true_prob) / total
        out["brier"] = weights @ squared / total
        out["ece"] = calibration_error(*_confidence(self), weights, "mass", 10)

        out["saturated"] = weights @ self.saturated / total
        out["saturated_accuracy"] = weights @ (self.saturated & self.named) / (weights @ self.saturated)

        truth, flagged = self.truth, self.flagged
        out["sensitivity"] = weights @ (truth & flagged) / (weights @ truth)
        out["specificity"] = weights @ (~truth & ~flagged) / (weights @ ~truth)
        out["ppv"] = weights @ (truth & flagged) / (weights @ flagged)
        out["npv"] = weights @ (~truth & ~flagged) / (weights @ ~flagged)
        out["sensitivity_at_90_specificity"] = sensitivity_at(*curves[self.positive], specificity=0.9)
        slope, intercept = calibration_line(truth, self.score, weights, auc(*curves[self.positive]))
        out["calibration_slope"], out["calibration_intercept"] = slope, intercept
        return out


def _replicates(
    sample: _Sample, clusters: NDArray[np.int64] | None, n_bootstrap: int, seed: int
) -> dict[str, Array]:
    if clusters is None:
        clusters = np.arange(sample.n)
    blocks = [sample.statistics(weights) for weights in draw_weights(clusters, n_bootstrap, seed)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in (blocks[0] if blocks else {})}


def _confidence(sample: _Sample) -> tuple[Array, NDArray[np.bool_]]:
    """What is binned, and whether it came true: the probability of ``positive``, or of the top class."""
    if sample.n_classes == 2:
        return sample.score, sample.truth
    return sample.prob.max(1), sample.prob.argmax(1) == sample.labels


def _ece_by_chance(sample: _Sample, seed: int, n_simulations: int = 1000) -> float:
    """Mean ECE where the outcomes are drawn from the probabilities themselves (consistency resampling, Bröcker & Smith
    2007, Weather and Forecasting 22:651)."""
    confidence = np.sort(_confidence(sample)[0])  # the order of the images must not choose the draws
    rng = np.random.default_rng(seed)
    membership = np.eye(10)[confidence_bins(confidence, "mass", 10)]
    size = max(1, CHUNK // sample.n)
    found = []
    for start in range(0, n_simulations, size):
        drawn = rng.random((min(size, n_simulations - start), sample.n)) < confidence
        found.append(np.abs((confidence - drawn) @ membership).sum(1) / sample.n)
    return float(np.concatenate(found).mean())


_FEW = "too few cases of a class or prediction"

Proportion = Callable[["_Sample"], tuple[NDArray[np.bool_], NDArray[np.bool_]]]
"""The hits [N], and the cases among which they count [N]."""

_PROPORTIONS: dict[str, Proportion] = {
    "accuracy": lambda s: (s.predicted == s.labels, np.ones(s.n, bool)),
    "majority_accuracy": lambda s: (s.majority, np.ones(s.n, bool)),
    "sensitivity": lambda s: (s.flagged, s.truth),
    "specificity": lambda s: (~s.flagged, ~s.truth),
    "ppv": lambda s: (s.truth, s.flagged),
    "npv": lambda s: (~s.truth, ~s.flagged),
    "saturated": lambda s: (s.saturated, np.ones(s.n, bool)),
    "saturated_accuracy": lambda s: (s.named, s.saturated),
}


def _wilson_of_cases(proportion: Proportion, sample: _Sample) -> list[float] | None:
    hits, among = proportion(sample)
    return wilson(int((hits & among).sum()), int(among.sum()))


def _wilson_of_patients(
    proportion: Proportion, sample: _Sample, clusters: NDArray[np.int64], value: float
) -> list[float] | None:
    n = _patients(proportion(sample)[1], clusters)
    return wilson(value * n, n)


def _patients(among: NDArray[np.bool_], clusters: NDArray[np.int64]) -> int:
    return len(np.unique(clusters[among]))


def _newcombe_of_patients(sample: _Sample, clusters: NDArray[np.int64], value: float) -> list[float]:
    """Of two classes, or of the mean over more as if all were like the smallest."""
    classes = [sample.positive] if sample.n_classes == 2 else range(sample.n_classes)
    counts = [
        (_patients(sample.labels == c, clusters), _patients(sample.labels != c, clusters)) for c in classes
    ]
    return newcombe(value, *min(counts, key=min))


def _mean_recall(sample: _Sample, clusters: NDArray[np.int64], value: float) -> list[float]:
    """Wilson's intervals of the recalls, their distances squared and added (MOVER, Zou & Donner 2008, Stat Med 27:1693)."""
    below, above = [], []
    classes = np.unique(sample.labels)
    for c in classes:
        of_class = sample.labels == c
        recall = float((sample.predicted[of_class] == c).mean())
        n = _patients(of_class, clusters)
        low, high = wilson(recall * n, n) or (0.0, 1.0)
        below.append(recall - low)
        above.append(high - recall)
    reach = [float(np.sqrt(np.square(of).sum()) / len(classes)) for of in (below, above)]
    return [max(0.0, value - reach[0]), min(1.0, value + reach[1])]


_CLOSED_FORM: dict[str, Callable[[_Sample], list[float] | None]] = {
    "auc": lambda s: auc_interval(s.truth, s.score),
    **{name: partial(_wilson_of_cases, proportion) for name, proportion in _PROPORTIONS.items()},
}
"""The intervals for independent cases."""

_AT_THE_EDGE: dict[str, Callable[[_Sample, NDArray[np.int64], float], list[float] | None]] = {
    "auc": _newcombe_of_patients,
    "balanced_accuracy": _mean_recall,
    "sensitivity_at_90_specificity": partial(_wilson_of_patients, _PROPORTIONS["sensitivity"]),
    **{name: partial(_wilson_of_patients, proportion) for name, proportion in _PROPORTIONS.items()},
}
"""The intervals where the bootstrap reaches the edge: (sample, clusters, value) -> [low, high]."""
