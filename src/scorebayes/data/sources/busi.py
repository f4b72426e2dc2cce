"""BUSI: breast ultrasound with lesion masks, in BreastMNIST's official split (Al-Dhabyani et al. 2020, Data in Brief 28).

Format: an npz archive ``breastmnist_SIZE.npz`` of ``{train,val,test}_images`` uint8 [N, S, S], ``_labels`` [N] or [N, 1]
(0 = malignant) and ``_masks`` bool [N, S, S]. Images without a lesion have an empty mask.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.base import Record, Rejected, SourceInfo
from scorebayes.data.masks import binary
from scorebayes.data.pixels.npy import read_npz
from scorebayes.data.split import SPLITS
from scorebayes.errors import DataError

PARTS = ("images", "labels", "masks")


class Busi:
    """One such file.

    Parameters
    ----------
    root: the file, or the folder that holds it.
    size: side of the images; it chooses the file in a folder.
    lesions: leave out images without a lesion, as many publications do.
    """

    def __init__(self, root: str | Path, *, size: int = 64, lesions: bool = False) -> None:
        given = Path(root)
        self.path = given if given.suffix == ".npz" else given / f"breastmnist_{size}.npz"
        self.lesions = lesions
        self.rejected: list[Rejected] = []
        self.notes: list[str] = [
            "BUSI names no patients, and some scans are stored twice, also across its official parts: figures on its test "
            "images are somewhat too good."
        ]
        self._arrays()
        self.info = SourceInfo(
            name="busi",
            title="BUSI, breast ultrasound with lesion masks",
            classes=("malignant", "normal, benign"),
            positive=0,
            licence="CC BY 4.0 as BreastMNIST; the original names none",
            citation="Al-Dhabyani et al. 2020, Data in Brief 28, 104863",
            access="local",
        )

    def records(self) -> list[Record]:
        """Train, val and test images in the order of the file."""
        arrays = self._arrays()
        return [
            Record(f"{split}-{row:04d}", self.path, label=int(label), split=split)
            for split in SPLITS
            for row, label in enumerate(arrays[f"{split}_labels"].reshape(-1).tolist())
            if not self.lesions or arrays[f"{split}_masks"][row].any()
        ]

    def read(self, record: Record) -> NDArray:
        """Pixels [S, S], float32 in [0, 1]."""
        return (self._of(record, "images") / np.float32(255)).astype(np.float32)

    def mask(self, record: Record) -> NDArray[np.bool_]:
        """Where the lesions are, [S, S]."""
        return binary(self._of(record, "masks"), f"{self.path}, mask of {record.image_id}")

    def _of(self, record: Record, what: str) -> NDArray:
        split, _, row = record.image_id.rpartition("-")
        return self._arrays()[f"{split}_{what}"][int(row)]

    def _arrays(self) -> Mapping[str, NDArray]:
        stamp = self.path.stat().st_mtime_ns if self.path.exists() else 0
        return _load(self.path, stamp)


@functools.lru_cache(maxsize=2)  # shared by the sources of a process, and not pickled with them
def _load(path: Path, _mtime: int) -> Mapping[str, NDArray]:
    arrays = read_npz(path, [f"{split}_{part}" for split in SPLITS for part in PARTS])
    for split in SPLITS:
        images, labels, masks = (arrays[f"{split}_{part}"] for part in PARTS)
        if images.ndim != 3 or masks.shape != images.shape or labels.size != len(images):
            raise DataError(
                f"{path}: {split}_images is {images.shape}, {split}_masks {masks.shape}, {split}_labels {labels.shape}.",
                "Expected [N, S, S] twice, and N labels.",
            )
    return arrays
