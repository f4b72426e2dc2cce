"""What validation images fix: how sources become a probability, where the mask is cut, and how wide the area's interval is.

No torch: all of it works on what was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from scorebayes.segmentation.drawn import Drawn

LEVEL = 0.95
LEAST_SHARE = 0.02  # a sampled share is known to no better than this
PIXELS = 400_000  # at most, for the fit
THRESHOLDS = np.round(np.arange(0.1, 0.91, 0.02), 2)
LARGEST_WEIGHT = 10.0
RELATIVE = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class MaskDecision:
    """log-odds of a pixel = samples * logit(share) + guess * logit of the guess + bias.

    ``samples`` and ``guess`` are the weights of the two sources, each a pixel-wise inverse temperature. threshold: of the
    probability, above which a pixel belongs to the mask. relative, widening: the area's interval is its mean plus or minus
    ``widening`` standard deviations, whose square is the variance of what was drawn plus that of an error of this share of
    the mean. coverage: share of areas that the interval aims at.
    """

    samples: float
    guess: float
    bias: float
    threshold: float
    relative: float
    widening: float
    coverage: float = LEVEL

    def prob(self, drawn: Drawn) -> NDArray[np.float64]:
        """Probability of being inside, [N, S, S]."""
        return expit(_features(drawn, slice(None)) @ np.array([self.samples, self.guess, self.bias]))

    def area(self, drawn: Drawn, prob: NDArray, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Mean area and its interval, [N, 3], in pixels of the prepared image. inside [N, S, S]: where the image is."""
        mean, variance = area_moments(drawn, prob, inside)
        return _interval(mean, variance, inside, self.relative, self.widening)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> MaskDecision:
        return cls(**stored)


def area_moments(
    drawn: Drawn, prob: NDArray, inside: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [N] and variance [N] of the area before calibration: the variance over the samples, where there are any, plus
    that of pixels that are inside independently."""
    prob = prob * inside
    variance = (prob * (1 - prob)).sum((1, 2)) + 1
    if drawn.sampled:
        variance = variance + drawn.areas.var(axis=1, ddof=1)
    return prob.sum((1, 2)), variance


def _interval(
    mean: NDArray, variance: NDArray, inside: NDArray[np.bool_], relative: float, widening: float
) -> NDArray[np.float64]:
    """Mean, lower and upper end [N, 3]; an area is neither negative nor larger than the image."""
    reach = widening * np.sqrt(variance + np.square(relative * mean))
    return np.stack([mean, np.maximum(mean - reach, 0), np.minimum(mean + reach, inside.sum((1, 2)))], axis=1)


def fit_decision(
    drawn: Drawn, masks: NDArray[np.bool_], inside: NDArray[np.bool_], seed: int = 0
) -> MaskDecision:
    """From validation images and their masks [N, S, S]."""
    samples, guess, bias = _fit_weights(drawn, masks, inside, seed)
    decision = MaskDecision(samples, guess, bias, 0.5, 0.0, 1.0)
    prob = decision.prob(drawn)
    threshold = _best_threshold(prob * inside, masks)
    relative, widening = _fit_interval(*area_moments(drawn, prob, inside), masks.sum((1, 2)), inside)
    return MaskDecision(samples, guess, bias, threshold, relative, widening)


def _fit_interval(
    mean: NDArray, variance: NDArray, truth: NDArray, inside: NDArray[np.bool_]
) -> tuple[float, float]:
    """The relative error with which the intervals are shortest on the average, and the widening that it needs."""
    found = {}
    for relative in RELATIVE:
        widening = _quantile(np.abs(truth - mean) / np.sqrt(variance + np.square(relative * mean)))
        _, low, high = _interval(mean, variance, inside, relative, widening).T
        found[float((high - low).mean())] = (relative, widening)
    return found[min(found)]


def _features(drawn: Drawn, rows: Any) -> NDArray[np.float64]:
    """Log-odds of the sources, and 1: [..., 3]."""
    guess = drawn.guess[rows].astype(np.float64)
    share = drawn.share[rows].astype(np.float64) if drawn.sampled else np.full_like(guess, 0.5)
    sampled = logit(np.clip(share, LEAST_SHARE, 1 - LEAST_SHARE))
    return np.stack([sampled, np.clip(guess, -20, 20), np.ones_like(guess)], axis=-1)


def _fit_weights(
    drawn: Drawn, masks: NDArray[np.bool_], inside: NDArray[np.bool_], seed: int
) -> tuple[float, float, float]:
    """Logistic regression on the pixels; weights are not negative."""
    features, y = _features(drawn, slice(None))[inside], masks[inside].astype(np.float64)
    if len(y) > PIXELS:
        chosen = np.random.default_rng(seed).choice(len(y), PIXELS, replace=False)
        features, y = features[chosen], y[chosen]

    def loss(weights: NDArray) -> tuple[float, NDArray]:
        z = features @ weights
        return float(np.mean(np.logaddexp(0, z) - y * z)), features.T @ (expit(z) - y) / len(y)

    bounds = [(0, LARGEST_WEIGHT if drawn.sampled else 0), (0, LARGEST_WEIGHT), (-5, 5)]
    start = np.array([0.5 if drawn.sampled else 0.0, 0.5, 0.0])
    found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x
    return float(found[0]), float(found[1]), float(found[2])


def _best_threshold(prob: NDArray, masks: NDArray[np.bool_]) -> float:
    """Where the mean Dice of images with an object is highest."""
    there = masks.any((1, 2))
    if not there.any():
        return 0.5
    prob, masks = prob[there], masks[there]
    dice = [dice_of(prob > threshold, masks).mean() for threshold in THRESHOLDS]
    return float(THRESHOLDS[int(np.argmax(dice))])


def dice_of(found: NDArray[np.bool_], masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """2 |A and B| / (|A| + |B|), [N]; 1 where both are empty."""
    total = found.sum((1, 2)) + masks.sum((1, 2))
    both = (found & masks).sum((1, 2))
    return np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0)


def _quantile(scores: NDArray[np.float64]) -> float:
    """The smallest widening that covers new images with the asked probability, if they are like these (split conformal
    prediction: Vovk et al. 2005; with a spread of each image's own, Lei et al. 2018, section 5.2)."""
    n = len(scores)
    place = min(n, math.ceil((n + 1) * LEVEL))
    return float(np.sort(scores)[place - 1])
