"""Is one model better than another on the same cases?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from scorebayes.metrics.areas import AucTest, delong_test, difference_at_the_edge
from scorebayes.metrics.intervals import clustered_bootstrap, patient_numbers, percentiles
from scorebayes.metrics.weighted import Array, Metrics, auc, cases_by_score, positive_column


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
    a, b = positive_column(prob, positive), positive_column(prob_other, positive)
    if truth.all() or not truth.any():
        return {"auc_difference": None, "auc_difference_reason": "only one class is present"}
    clusters = np.arange(len(truth)) if groups is None else patient_numbers(groups)
    if groups is None or int(clusters.max()) + 1 == len(truth):
        test, method = delong_test(truth, a, b), "DeLong"
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = clustered_bootstrap(
                lambda w: auc(*cases_by_score(truth, a, w)) - auc(*cases_by_score(truth, b, w)),
                groups,
                n_bootstrap=n_bootstrap,
                seed=seed,
            )
        draws = draws[np.isfinite(draws)]
        ones = np.ones((1, len(truth)))
        difference = float((auc(*cases_by_score(truth, a, ones)) - auc(*cases_by_score(truth, b, ones)))[0])
        # A p-value of zero cannot come from finitely many replicates: count the observed one too.
        tail = min((draws <= 0).sum(), (draws >= 0).sum()) + 1
        low, high = percentiles(draws) or (np.nan, np.nan)
        test = AucTest(difference, (low, high), float(min(1.0, 2 * tail / (len(draws) + 1))))
        if low == high:
            counts = len(np.unique(clusters[truth])), len(np.unique(clusters[~truth]))
            test = difference_at_the_edge(truth, a, b, counts)
        method = "bootstrap over patients"
    return {
        "auc_difference": test.difference,
        "auc_difference_ci95": list(test.interval),
        "auc_difference_p": test.p,
        "auc_difference_method": method,
    }


def holm(pvalues: ArrayLike) -> Array:
    """P-values adjusted for their number by Holm's step-down rule (1979), in the order given."""
    p = np.asarray(pvalues, dtype=np.float64)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1.0)
    return out
