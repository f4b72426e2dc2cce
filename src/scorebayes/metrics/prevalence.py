"""Predictive values of a decision at other prevalences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from scorebayes.metrics.weighted import Metrics


def predictive_values(at_threshold: Mapping, prevalences: ArrayLike) -> list[Metrics]:
    """PPV and NPV that sensitivity and specificity of a decision would have at other prevalences.

    at_threshold: metrics with ``sensitivity``, ``specificity`` and their intervals. Returns for each prevalence
    ``prevalence``, ``ppv``, ``npv`` and ``<name>_ci95``, by Bayes' rule from the likelihood ratios, whose
    intervals are recovered from those of the rates (MOVER-R, Newcombe 2016, Stat Methods Med Res 25:1774).
    It holds if only the prevalence differs and the images of each class are the same kind. Empty
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
