"""Shift: do the images of a split look, class by class, like the training images?

Every single image may pass as typical (``scorebayes.decision.typicality``) although the whole set is shifted: another
machine, other years, a different selection of patients. Calibration and threshold may then no longer hold, and no single
image shows it. A classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv 1610.06545) looks at the whole set: a linear
discriminant of the plain statistics of ``scorebayes.decision.appearance`` learns to separate half of its patients from half
of the training patients. Its AUC on the other halves is near 0.5 if there is no difference. The test is done within each
class, so that a different prevalence does not count as a shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scorebayes.metrics import Array, auc_interval, delong

LEAST_PATIENTS = 20  # of a class, in either set; below, nothing is said
NOTICED = 0.6
"""AUC from which a shift gets a warning. Training and test images of BreastMNIST and DDSM reach 0.45 to 0.58, those of
PneumoniaMNIST 0.60 (pneumonia) and 0.79 (normal); there every model is too sure of pneumonia (docs/limits.md)."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Images as they are compared: statistics [N, F] of their appearance, class indices [N], patients [N]."""

    statistics: NDArray[np.float64]
    labels: NDArray[np.int64]
    patients: Sequence[str]

    def patient_means(self, y: int) -> NDArray[np.float64]:
        """Mean statistics of the images of a class, by patient [P, F]."""
        rows = np.flatnonzero(self.labels == y)
        frame = pd.DataFrame(self.statistics[rows])
        return frame.groupby([self.patients[int(row)] for row in rows]).mean().to_numpy()


def measure_shift(
    known: Sample, new: Sample, classes: Sequence[str], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """How well the new images of each class can be told apart from the known ones, by class name.

    ``auc`` with ``auc_ci95`` (DeLong), ``patients`` and ``training_patients``, of whom half were learned from, and
    ``noticed``: the AUC reaches ``NOTICED`` and the interval excludes 0.5. A class with fewer than ``LEAST_PATIENTS`` in
    either set is left out.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for y, name in enumerate(classes):
        pair = [rng.permutation(sample.patient_means(y)) for sample in (known, new)]
        sizes = [len(means) for means in pair]
        if min(sizes) >= LEAST_PATIENTS:
            learned, asked = ([means[half::2] for means in pair] for half in (0, 1))
            found[name] = {
                **_told_apart(*learned, *asked), "patients": sizes[1], "training_patients": sizes[0]
            }  # fmt: skip
    return found


def _told_apart(known: Array, new: Array, other_known: Array, other_new: Array) -> dict[str, Any]:
    """Learn from two sets of statistics [P, F], and ask about two others."""
    model = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
    model.fit(np.concatenate([known, new]), np.repeat([0, 1], [len(known), len(new)]))
    truth = np.repeat([0, 1], [len(other_known), len(other_new)])
    score = model.decision_function(np.concatenate([other_known, other_new]))
    auc, interval = delong(truth, score)[0], auc_interval(truth, score)
    noticed = auc >= NOTICED and interval is not None and interval[0] > 0.5
    return {"auc": auc, "auc_ci95": interval, "noticed": bool(noticed)}
