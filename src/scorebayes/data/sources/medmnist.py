"""MedMNIST: any two-dimensional file of the collection, grey or RGB, at any size, with its official splits.

Format: an npz archive of ``{train,val,test}_images`` uint8 [N, H, W] or [N, H, W, 3] and
    ``{train,val,test}_labels``
[N, 1]. Label texts, task kinds and MD5 sums are those of the package ``medmnist`` 3.0 (Yang et al. 2023,
Scientific Data 10, 41).
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import re
import shutil
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.base import Record, Rejected, SourceInfo
from scorebayes.data.names import require_few_classes
from scorebayes.data.pixels.files import require_file
from scorebayes.data.pixels.npy import read_npz
from scorebayes.data.pixels.numbers import is_stack
from scorebayes.data.split import SPLITS
from scorebayes.errors import DataError
from scorebayes.storage.atomic import replacing

URL = "https://zenodo.org/records/10519652/files"
FOLDER = Path.home() / ".medmnist"
SIZES = ("28", "64", "128", "224")
TIMEOUT = 60.0  # seconds without an answer


@dataclass(frozen=True)
class _Flag:
    """What the collection says about one data set; ``md5`` is of the 28-pixel file."""

    md5: str
    classes: tuple[str, ...]
    positive: int = 1
    licence: str = "CC BY 4.0"


_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
FLAGS: Mapping[str, _Flag] = {
    "pathmnist": _Flag(
        "a8b06965200029087d5bd730944a56c1",
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        positive=8,
    ),
    "dermamnist": _Flag(
        "0744692d530f8e62ec473284d019b0c7",
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        positive=4,
        licence="CC BY-NC 4.0",
    ),
    "octmnist": _Flag(
        "c68d92d5b585d8d81f7112f81e2d0842",
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        positive=0,
    ),
    "pneumoniamnist": _Flag("28209eda62fecd6e6a2d98b1501bb15f", ("normal", "pneumonia")),
    "retinamnist": _Flag("bd4c0672f1bba3e3a89f0e4e876791e4", ("0", "1", "2", "3", "4"), positive=4),
    "breastmnist": _Flag("750601b1f35ba3300ea97c75c52ff8f6", ("malignant", "normal, benign"), positive=0),
    "bloodmnist": _Flag(
        "7053d0359d879ad8a5505303e11de1dc",
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
    ),
    "tissuemnist": _Flag(
        "ebe78ee8b05294063de985d821c1c34b",
        (
            "Collecting Duct, Connecting Tubule",
            "Distal Convoluted Tubule",
            "Glomerular endothelial cells",
            "Interstitial endothelial cells",
            "Leukocytes",
            "Podocytes",
            "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
    ),
    "organamnist": _Flag("68e3f8846a6bd62f0c9bf841c0d9eacc", _ORGANS),
    "organcmnist": _Flag("b9ceb9546e10131b32923c5bbeaea2b1", _ORGANS),
    "organsmnist": _Flag("9ab87b696fb54e2a387ebe992d6ed5f1", _ORGANS),
}
REFUSED = {"chestmnist": "multi-label (an image may have several of its 14 findings)"}


class MedMnist:
    """One npz file of the collection, or one in its format.

    Parameters
    ----------
    root: path of the npz file, or the name of a data set ("breastmnist", "breastmnist_64"), which is then
        downloaded once into ``~/.medmnist``; the 28-pixel files are checked against their MD5 sums.
    """

    def __init__(self, root: str | Path) -> None:
        self.path = Path(root) if str(root).endswith(".npz") or Path(root).exists() else _download(str(root))
        require_file(self.path)
        found = re.fullmatch(r"(.+?)(_\d+)?", self.path.stem.lower())
        name, size = found.groups() if found else (self.path.stem, None)
        if name in REFUSED:
            raise DataError(f"{self.path} is {REFUSED[name]}.", "One class per image is needed.")
        arrays = self._arrays()
        n_classes = 1 + max(int(arrays[f"{split}_labels"].max(initial=0)) for split in SPLITS)
        require_few_classes(self.path, n_classes)
        flag = FLAGS.get(name, _Flag("", tuple(str(label) for label in range(max(n_classes, 2)))))
        if n_classes > len(flag.classes):
            raise DataError(
                f"{self.path} has label {n_classes - 1}, but {name} has {len(flag.classes)} classes.",
                "Rename the file if it is another data set.",
            )
        if flag.md5 and size in (None, "_28"):
            self._check_md5(flag.md5)
        self.rejected: list[Rejected] = []
        self.notes: list[str] = []
        self.info = SourceInfo(
            name=self.path.stem,
            title=f"MedMNIST {name}" if name in FLAGS else f"{self.path.stem} (MedMNIST format)",
            classes=flag.classes,
            positive=flag.positive,
            channels=3 if arrays["train_images"].ndim == 4 else 1,
            licence=flag.licence if name in FLAGS else "",
            citation="Yang et al., MedMNIST v2, Scientific Data 10, 41 (2023)" if name in FLAGS else "",
            access="open, https://medmnist.com" if name in FLAGS else "",
        )

    def records(self) -> list[Record]:
        """All images of train, val and test, in the order of the file. The collection has no patient ids."""
        arrays = self._arrays()
        return [
            Record(f"{split}-{row:06d}", self.path, label=int(label), split=split)
            for split in SPLITS
            for row, label in enumerate(arrays[f"{split}_labels"])
        ]

    def read(self, record: Record) -> NDArray:
        """Pixels [H, W] or [H, W, 3], float32 in [0, 1]."""
        split, row = record.image_id.split("-")
        return self._arrays()[f"{split}_images"][int(row)].astype(np.float32) / 255

    def _arrays(self) -> Mapping[str, NDArray]:
        return _load(self.path, self.path.stat().st_mtime_ns)

    def _check_md5(self, published: str) -> None:
        md5 = _md5(self.path)
        if md5 != published:
            warnings.warn(
                f"{self.path} is not the published file: MD5 {md5}, expected {published}.", stacklevel=4
            )


@functools.lru_cache(maxsize=2)  # shared by the sources of a process, and not pickled with them
def _load(path: Path, _mtime: int) -> Mapping[str, NDArray]:
    """The six arrays, checked."""
    arrays = read_npz(path, [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")])
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if labels.ndim == 2 and labels.shape[1] > 1:
            raise DataError(
                f"{path} is multi-label: {split}_labels has shape {labels.shape}.", "Expected (N, 1)."
            )
        if images.dtype != np.uint8 or not is_stack(images):
            three = "is three-dimensional" if images.ndim >= 4 else "has an unknown format"
            raise DataError(
                f"{path} {three}: {split}_images is {images.dtype} {images.shape}.",
                "Expected uint8 (N, H, W) or (N, H, W, 3).",
            )
        if labels.dtype.kind not in "iu" or labels.size != len(images) or labels.min(initial=0) < 0:
            raise DataError(
                f"{path}: {split}_labels is {labels.dtype} {labels.shape} for {len(images)} images.",
                "Expected one class number per image.",
            )
        arrays[f"{split}_labels"] = labels.reshape(-1)
    return arrays


def _download(name: str) -> Path:
    """The file of a data set by name, fetched once into ``FOLDER``. DataError with the way by hand where that fails."""
    flag, _, size = name.lower().partition("_")
    if flag in REFUSED:
        raise DataError(f"{flag} is {REFUSED[flag]}.", "One class per image is needed.")
    if flag not in FLAGS or (size or "28") not in SIZES:
        known = f"Known: {', '.join(FLAGS)}, each also with {', '.join(f'_{size}' for size in SIZES[1:])}."
        raise DataError(f"{name} is neither a file nor a MedMNIST data set.", known)
    stem, published = (f"{flag}_{size}", "") if size not in ("", "28") else (flag, FLAGS[flag].md5)
    path, url = FOLDER / f"{stem}.npz", f"{URL}/{stem}.npz?download=1"
    if path.exists():
        return path
    checksum = f" (MD5 {published})" if published else ""
    by_hand = f"Download {url}{checksum} by hand, save it in {FOLDER} as {path.name}, and start again."
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, partial.open("wb") as file:
                shutil.copyfileobj(answer, file)
            found = _md5(partial)
            if published and found != published:
                raise OSError(f"its MD5 is {found}, not the published one")
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise DataError(
            f"{stem} could not be downloaded: {' '.join(str(error).split())[:200]}.", by_hand
        ) from error
    return path


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
