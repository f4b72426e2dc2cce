"""Your own images as arrays in one npz file, as a notebook has them in memory.

    images    [N, H, W] or [N, H, W, 3]: uint8, uint16, or floating-point numbers in [0, 1]
    labels    [N] class numbers, -1 where unknown
    classes   [Y] names of the classes; by default their numbers
    patients  [N] ids; without them, and where one is empty or "nan", an image stands alone
    split     [N] "train", "val" or "test"; without it, it is drawn by patient

The last three may be left out.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorebayes.data.base import Record, Rejected, SourceInfo
from scorebayes.data.names import known_patients
from scorebayes.data.pixels.images import is_stack, read_npz, to_unit
from scorebayes.data.sources.folder import positive_class
from scorebayes.errors import DataError
from scorebayes.storage.atomic import replacing

REQUIRED, OPTIONAL = ("images", "labels"), ("classes", "patients", "split")


class Arrays:
    """Images, labels and what else is known of them, in one npz file.

    Parameters
    ----------
    root: path of the npz file.
    positive: name of the class that "sensitivity" refers to. Without it as in ``folder``: the one whose name says so, or
        the last one.
    """

    def __init__(self, root: str | Path, *, positive: str | None = None) -> None:
        self.path = Path(root)
        arrays = self._arrays()
        images, classes = arrays["images"], tuple(arrays["classes"].tolist())
        self.rejected: list[Rejected] = []
        self.notes: list[str] = []
        self.info = SourceInfo(
            name="arrays",
            title=self.path.stem,
            classes=classes,
            positive=positive_class("arrays", classes, positive),
            bits=8 if images.dtype.itemsize == 1 or images.ndim == 4 else 16,
            channels=3 if images.ndim == 4 else 1,
            access="local",
        )

    def records(self) -> list[Record]:
        """All images in the order of the file."""
        arrays = self._arrays()
        patients = (
            known_patients(arrays["patients"].tolist())
            if "patients" in arrays
            else [None] * len(arrays["labels"])
        )
        return [
            Record(
                f"image-{row:06d}",
                self.path,
                label=None if label < 0 else label,
                patient_id=patients[row],
                split=str(arrays["split"][row]) if "split" in arrays else None,
            )
            for row, label in enumerate(arrays["labels"].tolist())
        ]

    def read(self, record: Record) -> NDArray:
        """Pixels [H, W] or [H, W, 3], float32 in [0, 1]. DataError where they are not finite or out of range."""
        row = int(record.image_id.rpartition("-")[2])
        return to_unit(self._arrays()["images"][row], f"{self.path}, {record.image_id}")

    def _arrays(self) -> Mapping[str, NDArray]:
        stamp = self.path.stat().st_mtime_ns if self.path.exists() else 0
        return _load(self.path, stamp)


def save_arrays(
    path: Path,
    images: NDArray,
    labels: NDArray[np.int64],
    *,
    classes: Sequence[str],
    patients: ArrayLike | None = None,
) -> None:
    """Write such a file. ``images`` [N, H, W] or [N, H, W, 3]; ``labels`` and ``patients`` [N]."""
    arrays: dict[str, Any] = {"images": images, "labels": labels, "classes": np.array(classes, dtype=str)}
    if patients is not None:
        arrays["patients"] = np.asarray(patients).astype(str)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


@functools.lru_cache(maxsize=2)  # shared by the sources of a process, and not pickled with them
def _load(path: Path, _mtime: int) -> Mapping[str, NDArray]:
    """The arrays, checked; the classes are always there."""
    arrays = read_npz(path, REQUIRED, OPTIONAL)
    images, labels = arrays["images"], arrays["labels"]
    if not is_stack(images) or not images.size:
        raise DataError(
            f"{path}: images is {images.dtype} {images.shape}.", "Expected (N, H, W) or (N, H, W, 3)."
        )
    if labels.dtype.kind not in "iu" or labels.min(initial=0) < -1:
        raise DataError(f"{path}: labels is {labels.dtype}.", "Expected class numbers, with -1 for unknown.")
    for name, array in arrays.items():
        if name != "classes" and (array.ndim < 1 or len(array) != len(images)):
            raise DataError(
                f"{path}: {name} is {array.shape} for {len(images)} images.", "Expected one per image."
            )
    n_classes = max(2, 1 + int(labels.max()))
    arrays.setdefault("classes", np.arange(n_classes).astype(str))
    if len(np.unique(arrays["classes"])) != arrays["classes"].size or arrays["classes"].size < n_classes:
        raise DataError(
            f"{path}: classes is {arrays['classes'].tolist()}, but labels go up to {int(labels.max())}.",
            "Give every class a different name.",
        )
    return arrays | {"classes": arrays["classes"].astype(str)}
