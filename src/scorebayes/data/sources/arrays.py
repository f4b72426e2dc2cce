"""Your own images as arrays in one npz file, as a notebook has them in memory.

    images    [N, H, W] or [N, H, W, 3]: uint8, uint16, or floating-point numbers in [0, 1]
    labels    [N] class numbers, -1 where unknown; or [N] names of classes, "" where unknown
    classes   [Y] names of the classes; by default their numbers, or the names in labels in alphabetical order
    patients  [N] ids; without them, and where one is empty or "nan", an image stands alone
    split     [N] "train", "val" or "test"; without it, it is drawn by patient

The last three may be left out; patients may also be called patient, patient_id, subject and the like, as in a table.
Images may also be [N, 1, H, W], [N, 3, H, W] or [N, H, W, 1], the other arrays [N, 1].
Other whole numbers, such as int64, are read at 8 bits where none is above 255, else at 16; ``bits`` says otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorebayes.data.base import Record, Rejected, SourceInfo
from scorebayes.data.names import (
    class_key,
    clean,
    has_label,
    known_patients,
    one_spelling,
    require_few_classes,
)
from scorebayes.data.pixels.npy import npz_names, read_npz
from scorebayes.data.pixels.numbers import as_stack, to_unit, unsigned
from scorebayes.data.sources.folder import PATIENT_COLUMN, positive_class
from scorebayes.errors import ConfigError, DataError
from scorebayes.storage.atomic import replacing

MAX_TEXT = 1000  # characters of a label or id
REQUIRED, OPTIONAL = ("images", "labels"), ("classes", "split")
PATIENTS = ("patients", *PATIENT_COLUMN.split("|"))  # names of one array, best first


class Arrays:
    """Images, labels and what else is known of them, in one npz file.

    Parameters
    ----------
    root: path of the npz file.
    positive: name of the class that "sensitivity" refers to. Without it as in ``folder``: the one whose name says so, or
        the last one.
    bits: true depth of whole numbers stored in more than 8 bits (12 for 12-bit images in uint16).
    """

    def __init__(self, root: str | Path, *, positive: str | None = None, bits: int | None = None) -> None:
        if bits is not None and not 1 <= bits <= 16:
            raise ConfigError(f"arrays: bits is {bits}, expected 1 to 16.")
        self.path, self.bits = Path(root), bits
        arrays = self._arrays()
        images, classes = arrays["images"], tuple(arrays["classes"].tolist())
        depth = 8 if images.dtype.itemsize == 1 else 16
        self.rejected: list[Rejected] = []
        self.notes: list[str] = []
        self.info = SourceInfo(
            name="arrays",
            title=self.path.stem,
            classes=classes,
            positive=positive_class("arrays", classes, positive),
            bits=depth if bits is None or depth == 8 else bits,
            file_bits=bits or (depth if bool(arrays["guessed"]) else None),
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
        return to_unit(self._arrays()["images"][row], f"{self.path}, {record.image_id}", self.bits)

    def _arrays(self) -> Mapping[str, NDArray]:
        stamp = self.path.stat().st_mtime_ns if self.path.exists() else 0
        return _load(self.path, stamp, self.bits)


def save_arrays(
    path: Path,
    images: NDArray,
    labels: NDArray[np.int64],
    *,
    classes: Sequence[str],
    patients: ArrayLike | None = None,
    split: ArrayLike | None = None,
) -> None:
    """Write such a file. ``images`` [N, H, W] or [N, H, W, 3]; ``labels``, ``patients`` and ``split`` [N]."""
    arrays: dict[str, Any] = {"images": images, "labels": labels, "classes": np.array(classes, dtype=str)}
    for name, values in (("patients", patients), ("split", split)):
        if values is not None:
            arrays[name] = np.asarray(values).astype(str)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


@functools.lru_cache(maxsize=2)  # shared by the sources of a process, and not pickled with them
def _load(path: Path, _mtime: int, bits: int | None) -> Mapping[str, NDArray]:
    """The arrays, checked; labels are numbers and the classes always there. ``guessed``: whether the depth of the images is
    taken from their values, since their type does not tell it."""
    names = npz_names(path)
    if {"train_images", "train_labels"} <= {*names}:
        raise DataError(f"{path} is a MedMNIST file.", f"Open it as medmnist:{path}.")
    of_patients = next((name for name in PATIENTS if name in names), PATIENTS[0])
    arrays = read_npz(path, REQUIRED, (*OPTIONAL, of_patients))
    if of_patients in arrays:
        arrays["patients"] = arrays.pop(of_patients)
    images = as_stack(arrays["images"], f"{path}: images")
    arrays["images"] = unsigned(images, f"{path}: images", bits)
    for name in ("labels", "patients", "split"):
        if name in arrays:
            arrays[name] = _one_per_image(arrays[name], f"{path}: {name}", len(images))
    if "classes" in arrays:
        arrays["classes"] = _names(arrays["classes"], f"{path}: classes")
    arrays["labels"], classes = _numbered(arrays["labels"], arrays.get("classes"), f"{path}: labels")
    n_classes = max(2, 1 + int(arrays["labels"].max()))
    if len(np.unique(classes)) != classes.size or classes.size < n_classes:
        raise DataError(
            f"{path}: classes is {classes.tolist()}, but labels go up to {int(arrays['labels'].max())}.",
            "Give every class a different name.",
        )
    return arrays | {"classes": classes, "guessed": np.array(arrays["images"].dtype != images.dtype)}


def _one_per_image(array: NDArray, name: str, n_images: int) -> NDArray:
    """[N], also where [N, 1] came."""
    if array.shape not in ((n_images,), (n_images, 1)):
        one_hot = array.ndim == 2 and len(array) == n_images
        raise DataError(
            f"{name} is {array.shape} for {n_images} images.",
            "Expected one per image"
            + (" (of one column a class: array.argmax(axis=1))." if one_hot else "."),
        )
    if (
        array.dtype.kind in "US"
        and array.dtype.itemsize > MAX_TEXT * np.dtype(f"{array.dtype.kind}1").itemsize
    ):
        raise DataError(f"{name} holds texts of more than {MAX_TEXT} characters.", "Give shorter names.")
    return array.reshape(-1)


def _names(classes: NDArray, name: str) -> NDArray[np.str_]:
    if classes.size != max(classes.shape, default=0) or classes.dtype.kind not in "biuUS":
        raise DataError(f"{name} is {classes.dtype} {classes.shape}.", "Expected one name per class.")
    require_few_classes(name, classes.size)
    return _one_per_image(classes.reshape(-1), name, classes.size).astype(str)


def _numbered(
    labels: NDArray, classes: NDArray[np.str_] | None, name: str
) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Class numbers [N], -1 where unknown, and the names of the classes."""
    if labels.dtype.kind in "US":
        texts = labels.astype(str).tolist()
        spelling = one_spelling((text for text in texts if has_label(text)), class_key)
        texts = np.array([clean(spelling.get(text, "")) for text in texts])
        found = np.unique(texts[texts != ""])
        require_few_classes(name, len(found))
        names = found if classes is None else classes
        strange = sorted(set(found.tolist()) - set(names.tolist()))
        if strange:
            raise DataError(
                f"{name} has {strange[0]!r}, which is not one of {', '.join(names)}.", "Add it to classes."
            )
        number = {text: index for index, text in enumerate(names.tolist())} | {"": -1}
        return np.array([number[text] for text in texts.tolist()], dtype=np.int64), names
    known = np.nan_to_num(labels, nan=-1) if labels.dtype.kind == "f" else labels
    if (
        known.dtype.kind not in "biuf"
        or not np.isfinite(known).all()
        or (known != np.floor(known)).any()
        or known.min(initial=0) < -1
    ):
        raise DataError(
            f"{name} is {labels.dtype}, and not all of it class numbers.",
            "Expected class numbers, with -1 for unknown, or names of classes.",
        )
    require_few_classes(name, 1 + int(known.max(initial=0)))
    numbers = known.astype(np.int64)
    return numbers, np.arange(max(2, 1 + int(numbers.max()))).astype(str) if classes is None else classes
