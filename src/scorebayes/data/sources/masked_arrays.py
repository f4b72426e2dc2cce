"""Your own images and masks as arrays in one npz file, as a notebook has them in memory.

images    [N, H, W] or [N, H, W, 3]: uint8, uint16, or floating-point numbers in [0, 1]
masks     [N, H, W]: 0 outside, one other number inside; all 0 where there is nothing
patients  [N] ids; without them, and where one is empty or "nan", an image stands alone
split     [N] "train", "val" or "test"; without it, it is drawn by patient
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorebayes.data.base import Record, Rejected, SourceInfo
from scorebayes.data.masks import binary
from scorebayes.data.names import known_patients
from scorebayes.data.pixels.npy import read_npz
from scorebayes.data.pixels.numbers import as_stack, to_unit, unsigned
from scorebayes.errors import ConfigError, DataError
from scorebayes.storage.atomic import replacing

OUTSIDE_AND_INSIDE = ("outside", "inside")


class MaskedArrays:
    """Images, masks and what else is known of them, in one npz file.

    Parameters
    ----------
    root: path of the npz file.
    bits: true depth of whole numbers stored in more than 8 bits.
    instances: masks number their objects, 1, 2, ...
    """

    def __init__(self, root: str | Path, *, bits: int | None = None, instances: bool = False) -> None:
        if bits is not None and not 1 <= bits <= 16:
            raise ConfigError(f"arrays: bits is {bits}, expected 1 to 16.")
        self.path, self.bits, self.instances = Path(root), bits, instances
        images = self._arrays()["images"]
        depth = 8 if images.dtype.itemsize == 1 else 16
        self.rejected: list[Rejected] = []
        self.notes: list[str] = []
        self.info = SourceInfo(
            name="masked-arrays",
            title=self.path.stem,
            classes=OUTSIDE_AND_INSIDE,
            positive=1,
            bits=depth if bits is None or depth == 8 else bits,
            file_bits=bits,
            channels=3 if images.ndim == 4 else 1,
            access="local",
        )

    def records(self) -> list[Record]:
        """All images in the order of the file."""
        arrays = self._arrays()
        n = len(arrays["images"])
        patients = known_patients(arrays["patients"].tolist()) if "patients" in arrays else [None] * n
        return [
            Record(
                f"image-{row:06d}",
                self.path,
                patient_id=patients[row],
                split=str(arrays["split"][row]) if "split" in arrays else None,
            )
            for row in range(n)
        ]

    def read(self, record: Record) -> NDArray:
        """Pixels [H, W] or [H, W, 3], float32 in [0, 1]."""
        return to_unit(self._arrays()["images"][_row(record)], f"{self.path}, {record.image_id}", self.bits)

    def mask(self, record: Record) -> NDArray[np.bool_]:
        """Where the object is, [H, W]."""
        name = f"{self.path}, mask of {record.image_id}"
        return binary(self._arrays()["masks"][_row(record)], name, objects=self.instances)

    def _arrays(self) -> Mapping[str, NDArray]:
        stamp = self.path.stat().st_mtime_ns if self.path.exists() else 0
        return _load(self.path, stamp, self.bits)


def save_masked_arrays(
    path: Path, images: NDArray, masks: NDArray[np.bool_], patients: ArrayLike | None = None
) -> None:
    """Write such a file. images [N, H, W] or [N, H, W, 3]; masks [N, H, W]; patients [N]."""
    extra = {} if patients is None else {"patients": np.asarray(patients).astype(str)}
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, images=images, masks=masks, **extra)  # type: ignore[arg-type]


def _row(record: Record) -> int:
    return int(record.image_id.rpartition("-")[2])


@functools.lru_cache(maxsize=2)  # shared by the sources of a process, and not pickled with them
def _load(path: Path, _mtime: int, bits: int | None) -> Mapping[str, NDArray]:
    arrays = read_npz(path, ("images", "masks"), ("patients", "split"))
    arrays["images"] = unsigned(as_stack(arrays["images"], f"{path}: images"), f"{path}: images", bits)
    n, *sides = arrays["images"].shape
    if arrays["masks"].shape != (n, *sides[:2]):
        raise DataError(
            f"{path}: masks is {arrays['masks'].shape}, but images is {arrays['images'].shape}.",
            "Expected one mask for every image, of its height and width.",
        )
    for name in ("patients", "split"):
        if name in arrays and arrays[name].shape != (n,):
            raise DataError(
                f"{path}: {name} is {arrays[name].shape} for {n} images.", "Expected one per image."
            )
    return arrays
