"""CBIS-DDSM at 128 pixels for the benchmark: the official training part, with a test part of our own.

The official test part is not in the data root. A tenth of a patient's name, by its hash, decides instead: the same patients
are tested whatever the seed, and validation is carved out of the others.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from scorebayes.data.pixels.npy import read_npz
from scorebayes.data.sources.arrays import save_arrays

CLASSES = ("benign", "malignant")
TESTED = 2  # tenths of the patients


def cbis_128(data_root: Path, kept: Path) -> str:
    """The data set as ``arrays:FILE``; the file is written in ``kept``. DataError where the data are missing."""
    given = read_npz(data_root / "cbis_train_128" / "cbis_128.npz", ("images", "labels", "patient"))
    split = ["test" if _tenth(patient) < TESTED else "train" for patient in given["patient"].tolist()]
    path = kept / "cbis-128.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(
            path, given["images"], given["labels"].astype(np.int64), classes=CLASSES, patients=given["patient"], split=split
        )  # fmt: skip
    return f"arrays:{path.resolve()}"


def _tenth(patient: str) -> int:
    return int(hashlib.sha256(f"cbis-128 {patient}".encode()).hexdigest(), 16) % 10
