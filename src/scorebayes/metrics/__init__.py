"""How good are the probabilities? Discrimination, calibration and usefulness, each with its 95 % interval.

Every metric is written once, for weighted cases (``weighted``): the point estimate is the value at weights of one, a
bootstrap replicate the value at the number of times that each patient was drawn. Thousands of replicates are
thereby a few array operations. A metric that is not defined for the cases at hand (one class only) is None
with a reason, never a number.
"""

from scorebayes.metrics.areas import AucTest, auc_interval, delong, delong_test
from scorebayes.metrics.comparison import compare, holm
from scorebayes.metrics.curves import (
    choose_threshold,
    decision_curve,
    reliability_curve,
    risk_coverage,
    roc_band,
    roc_curve,
)
from scorebayes.metrics.intervals import clustered_bootstrap, wilson
from scorebayes.metrics.prevalence import predictive_values
from scorebayes.metrics.summary import SATURATED, classification_metrics, ece
from scorebayes.metrics.weighted import Array, Metrics

__all__ = [
    "SATURATED",
    "Array",
    "AucTest",
    "Metrics",
    "auc_interval",
    "choose_threshold",
    "classification_metrics",
    "clustered_bootstrap",
    "compare",
    "decision_curve",
    "delong",
    "delong_test",
    "ece",
    "holm",
    "predictive_values",
    "reliability_curve",
    "risk_coverage",
    "roc_band",
    "roc_curve",
    "wilson",
]
