"""Discriminative peers in the same harness: trained on the same images, tuned and calibrated on the same validation
images, at the same training cost."""

from __future__ import annotations

from scorebayes.baselines.base import Baseline, Kind
from scorebayes.baselines.network import score_step_cost, score_steps
from scorebayes.baselines.store import (
    BASELINES,
    fit_baseline,
    open_baseline,
    predict_baseline,
    read_predictions,
)

__all__ = [
    "BASELINES",
    "Baseline",
    "Kind",
    "fit_baseline",
    "open_baseline",
    "predict_baseline",
    "read_predictions",
    "score_step_cost",
    "score_steps",
]
