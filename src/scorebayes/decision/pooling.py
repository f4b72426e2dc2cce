"""Pooling: one posterior for a breast or a patient from the posteriors of its images.

Under Bayes' rule the evidence of images of one unit adds: posterior log-odds minus prior log-odds are the log of a
likelihood ratio, and ratios of independent images multiply. Views of one lesion are not independent. If the evidence of
two images of a unit has correlation r given the class (the same for each pair, equal means and variances, normal), the
log-likelihood ratio of n of them is exactly their sum divided by 1 + (n - 1) r. r = 0 adds the evidence up, r = 1 is its
mean: many views then count as one.

A patient is positive if one of the breasts is; breasts are taken as independent given their images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

LEAST_UNITS = 10
"""Below this many units of several images, of either outcome, no correlation is fitted."""


@dataclass(frozen=True)
class Pooling:
    """How the evidence of images of one unit is added.

    correlation: in [0, 1], between two images of a unit. n: units of several images that it was fitted on. log_loss: of
    these units, nats each. Unfitted, the correlation is 1 (the mean), which never counts evidence twice.
    """

    correlation: float = 1.0
    n: int = 0
    log_loss: float | None = None

    def discount(self, n_images: ArrayLike) -> NDArray[np.float64]:
        """By what the sum of the evidence of so many images is multiplied."""
        return 1 / (1 + (np.asarray(n_images, dtype=np.float64) - 1) * self.correlation)

    def log_odds(self, log_odds: NDArray, unit: NDArray[np.int64], prior: float) -> NDArray[np.float64]:
        """Posterior log-odds of the units [U].

        log_odds: [N], of the images. unit: [N], number of each image's unit, 0 .. U-1. prior: log-odds before any image.
        """
        evidence = np.bincount(unit, np.asarray(log_odds) - prior)
        return prior + self.discount(np.bincount(unit)) * evidence

    def to_dict(self) -> dict[str, float | None]:
        """JSON-ready."""
        return asdict(self)


def fit_pooling(units: Units, log_odds: NDArray, positive: ArrayLike, prior: float) -> Pooling:
    """The correlation with the smallest log-loss over the units of several images.

    Parameters
    ----------
    units: which validation images belong together. log_odds, positive: [N], of these images.
    prior: log-odds that ``log_odds`` include. It is subtracted again: the prior of the units comes from their own shares.

    Fewer than ``LEAST_UNITS`` units of either outcome: the unfitted pooling.
    """
    evidence = np.asarray(log_odds, dtype=np.float64) - prior
    counts = np.bincount(units.unit)
    several = counts > 1
    truth = units.labels(positive)[several] > 0
    if min(truth.sum(), (~truth).sum()) < LEAST_UNITS:
        return Pooling()
    total, own_prior = np.bincount(units.unit, evidence)[several], logit(truth.mean())

    def log_loss(correlation: float) -> float:
        pooled = own_prior + Pooling(correlation).discount(counts[several]) * total
        return float(np.logaddexp(0, np.where(truth, -pooled, pooled)).mean())

    found = minimize_scalar(log_loss, bounds=(0.0, 1.0), method="bounded")
    # The search looks at the inside of the range only.
    best = min((0.0, 1.0, float(found.x)), key=log_loss)
    return Pooling(best, int(several.sum()), log_loss(best))


class Pooled(NamedTuple):
    """Breasts or patients: labels [U] (1 = positive), prob [U, 2] of (negative, positive), patients [U] (None: unknown)."""

    labels: NDArray[np.int64]
    prob: NDArray[np.float64]
    patients: list


@dataclass(frozen=True)
class Units:
    """Which images belong together.

    unit: [N], number of each image's unit: the breast where every side is known, else the patient. patient: [U], of each
    unit; an image without a known patient is a unit of its own. sides: whether the units are breasts.
    """

    unit: NDArray[np.int64]
    patient: list
    sides: bool

    @staticmethod
    def of(patients: Sequence, sides: Sequence[str]) -> Units:
        """patients [N]: None, "" or NaN where unknown. sides [N]: "" where unknown."""
        known = [not (name is None or name == "" or name != name) for name in patients]
        by_side = bool(len(sides)) and all(sides)
        names = [
            f"{patient} {side if by_side else ''}" if there else f"\0{row}"
            for row, (patient, side, there) in enumerate(zip(patients, sides, known, strict=True))
        ]
        _, rows, unit = np.unique(names, return_index=True, return_inverse=True)
        return Units(unit, [patients[row] if known[row] else None for row in rows], by_side)

    def labels(self, positive: ArrayLike) -> NDArray[np.int64]:
        """Whether an image of the unit is positive: [N] -> [U]."""
        return (np.bincount(self.unit, np.asarray(positive, dtype=np.float64)) > 0).astype(np.int64)

    def pool(
        self, pooling: Pooling, log_odds: NDArray, positive: ArrayLike, prior: float
    ) -> dict[str, Pooled]:
        """Levels at which there are fewer cases than images: "breast" (where sides are known) and "patient".

        log_odds, positive: [N], of the images. prior: log-odds before any image.
        """
        own = pooling.log_odds(log_odds, self.unit, prior)
        labels = self.labels(positive)
        found = {"breast": Pooled(labels, _both(own), self.patient)} if self.sides else {}
        names = [f"\0{row}" if name is None else str(name) for row, name in enumerate(self.patient)]
        _, rows, group = np.unique(names, return_index=True, return_inverse=True)
        any_label = (np.bincount(group, labels) > 0).astype(np.int64)
        found["patient"] = Pooled(any_label, _both(_any(own, group)), [self.patient[row] for row in rows])
        return {name: level for name, level in found.items() if len(level.labels) < len(self.unit)}


def _any(log_odds: NDArray, group: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-odds that one unit or more of each group is positive: [U] -> [G]."""
    none = np.bincount(group, -np.logaddexp(0, log_odds))  # sum of log(1 - p)
    several = np.log(np.maximum(-np.expm1(none), np.finfo(np.float64).tiny)) - none
    # A group of one keeps its number to the last digit.
    return np.where(np.bincount(group) == 1, np.bincount(group, log_odds), several)


def _both(log_odds: NDArray) -> NDArray[np.float64]:
    return np.stack([expit(-log_odds), expit(log_odds)], axis=1)
