"""Folds for cross-fitting: what is held out in turn is always whole patients, since images of a patient are alike."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

Rows = NDArray[np.int64]


def labelled_folds(labels: Rows, patients: Rows, most: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Rows to fit on and rows held out, every class by its share; by image only where all are of one patient.

    labels [N]; patients [N], the number of each image's patient; most: folds.
    """
    n_patients = len(np.unique(patients))
    if n_patients in (1, len(patients)):
        few = int(np.bincount(labels).min())
        by_image = StratifiedKFold(min(most, few), shuffle=True, random_state=seed)
        return list(by_image.split(labels, labels))
    per_class = [len(np.unique(patients[labels == y])) for y in np.unique(labels)]
    splitter = StratifiedGroupKFold(max(2, min(most, *per_class)), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class of one patient is in one fold only
        return list(splitter.split(labels, labels, patients))


def held_out(patients: Sequence, most: int, seed: int) -> list[Rows]:
    """The rows that are held out in turn; by image only where all are of one patient. patients [N]; most: folds."""
    first: dict[object, int] = {}
    numbers = np.array([first.setdefault(patient, len(first)) for patient in patients], dtype=np.int64)
    if len(first) == 1:
        numbers = np.arange(len(numbers))
    order = np.random.default_rng(seed).permutation(int(numbers.max()) + 1)
    return [np.flatnonzero(np.isin(numbers, part)) for part in np.array_split(order, min(most, len(order)))]
