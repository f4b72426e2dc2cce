"""CBIS-DDSM: scanned film mammograms with proven lesions, in every layout in which it is distributed.

Tables as published (a line feed ends one path of every row), images as downloaded from TCIA (older and newer
folder names) or as the JPEG copy. Files are found by the names of their folders, never by their own name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.base import Record, SourceInfo
from scorebayes.data.sources.mammograms import (
    CLASSES,
    MAMMOGRAPHY,
    TASKS,
    Count,
    Left,
    crop,
    files_by_folder,
    find_table,
    is_plain_relative,
    pool_breasts,
    read_mammogram,
    require_choice,
    require_margin,
)
from scorebayes.data.sources.tables import read_table
from scorebayes.errors import DataError

INFO = SourceInfo(
    name="cbis-ddsm",
    title="CBIS-DDSM: Curated Breast Imaging Subset of DDSM",
    classes=CLASSES,
    positive=1,
    bits=16,
    licence="CC BY 3.0",
    citation="Lee et al. 2017, Scientific Data 4, 170177, https://doi.org/10.1038/sdata.2017.177",
    access="The Cancer Imaging Archive, open: https://doi.org/10.7937/K9/TCIA.2016.7O02S9CY",
    modalities=MAMMOGRAPHY,
)
COLUMNS = (
    "patient_id",
    "breast density",
    "left or right breast",
    "image view",
    "abnormality id",
    "assessment",
    "pathology",
    "subtlety",
    "image file path",
    "cropped image file path",
    "ROI mask file path",
)
LABELS = {"BENIGN": 0, "BENIGN_WITHOUT_CALLBACK": 0, "MALIGNANT": 1}
PUBLISHED = {  # lesions, images, patients of each table
    ("mass", "train"): (1318, 1231, 691),
    ("mass", "test"): (378, 361, 201),
    ("calc", "train"): (1546, 1227, 602),
    ("calc", "test"): (326, 284, 151),
}
PUBLISHED_PATIENTS = 1566
PUBLISHED_LEAK = 31


@dataclass(frozen=True)
class Lesion:
    """One row of a table. ``image``, ``crop`` and ``mask`` are paths as the table gives them."""

    kind: str
    split: str
    patient: str
    side: str
    view: str
    number: str
    density: str
    assessment: str
    subtlety: str
    pathology: str
    image: str
    crop: str
    mask: str

    @property
    def image_view(self) -> tuple[str, str, str]:
        return self.patient, self.side, self.view

    @property
    def case(self) -> str:
        """Folder of the full image, which names it."""
        return self.image.split("/")[0]

    @property
    def name(self) -> str:
        """Folder of the lesion's crop and mask."""
        return f"{self.case}_{self.number}"


class CbisDdsm:
    """CBIS-DDSM in its native layout. Benign is BENIGN and BENIGN_WITHOUT_CALLBACK (both proven), else
    malignant.

    Parameters
    ----------
    root: folder of the images and, at most three folders down, the four case-description tables.
    tables: folder of the tables where they lie elsewhere.
    task: "image" (malignant if one of its lesions is), "crop" (one image per lesion, around its mask) or
        "breast" (images with the label of their breast; the views are pooled in reports).
    lesions: "mass", "calc" or "all". A view listed for both types is one image then.
    split: "official", or "none" for a new split of the patients.
    leak_side: 31 patients are in the training table of one lesion type and in the test table of the other.
        With both types and the official split they are taken out of this side ("train" or "test").
    margin: around a lesion, as a share of its longer side.
    """

    info = INFO

    def __init__(
        self,
        root: str | Path,
        *,
        tables: str | Path | None = None,
        task: Literal["image", "crop", "breast"] = "image",
        lesions: Literal["all", "mass", "calc"] = "all",
        split: Literal["official", "none"] = "official",
        leak_side: Literal["train", "test"] = "train",
        margin: float = 0.25,
    ) -> None:
        require_choice("task", task, TASKS)
        require_choice("lesions", lesions, ("all", "mass", "calc"))
        require_choice("split", split, ("official", "none"))
        require_choice("leak_side", leak_side, ("train", "test"))
        require_margin(margin)
        self.root = Path(root)
        self.tables = Path(tables) if tables is not None else self.root
        self.task = task
        self.kinds = ("mass", "calc") if lesions == "all" else (lesions,)
        self.split = split
        self.leak_side = leak_side
        self.margin = margin
        self.rejected: Left = Left()
        self.notes: list[str] = []

    def lesions(self) -> list[Lesion]:
        """All rows of the chosen tables. DataError where a table is missing or malformed."""
        self.notes = []
        found = []
        for kind in self.kinds:
            for split in ("train", "test"):
                path = find_table(self.tables, f"{kind}_case_description_{split}_set.csv")
                table = read_table(path, COLUMNS)
                self.notes += table.notes
                for row in table.rows:
                    side = {"LEFT": "L", "RIGHT": "R"}.get(row["left or right breast"], "")
                    cells = [row[column] for column in COLUMNS]
                    patient, density, _, view, number, assessment, pathology, subtlety, *paths = cells
                    about = patient, side, view, number, density, assessment, subtlety, pathology
                    found.append(Lesion(kind, split, *about, *paths))
        return found

    def counts(self) -> list[Count]:
        """Lesions, images and patients of each chosen table, and the patients on both sides."""
        lesions = self.lesions()
        counts: list[Count] = []
        for kind in self.kinds:
            for split in ("train", "test"):
                rows = [x for x in lesions if (x.kind, x.split) == (kind, split)]
                found = len(rows), len({x.image for x in rows}), len({x.patient for x in rows})
                names = (f"{kind} {split} {what}" for what in ("lesions", "images", "patients"))
                counts += map(Count, names, found, PUBLISHED[kind, split])
        if len(self.kinds) == 2:
            counts.append(Count("patients", len({x.patient for x in lesions}), PUBLISHED_PATIENTS))
            counts.append(Count("patients in train and test", len(_on_both_sides(lesions)), PUBLISHED_LEAK))
        return counts

    def records(self) -> list[Record]:
        """Images (or lesions) whose file is there, in the order of the tables; the others go to
        ``rejected``.
        """
        self.rejected = Left()
        lesions = self._without_leak(self._sound(self.lesions()))
        files = files_by_folder(self.root)
        records = self._crops(lesions, files) if self.task == "crop" else self._images(lesions, files)
        if len(self.kinds) == 2:
            self._reject_strangers(files)
        return pool_breasts(records) if self.task == "breast" else records

    def read(self, record: Record) -> NDArray[np.float32]:
        """The whole image, or the lesion by its mask; the published crop where the image or the mask is
        missing.
        """
        if self.task != "crop":
            return read_mammogram(record.path, self.root)
        parts = [self.root / name for name in record.extra["parts"].split(";") if name]
        pictures = [read_mammogram(path, self.root) for path in parts]
        # The columns of crop and mask are swapped in some rows: the content tells them apart.
        masks = sorted((p for p in pictures if _is_mask(p)), key=lambda p: p.size)
        if masks and record.path not in parts:
            image = read_mammogram(record.path, self.root)
            return crop(record.path, image, _box(record.path, masks[-1], image.shape), self.margin)
        crops = [p for p in pictures if not _is_mask(p)]
        if not crops:
            raise DataError(
                f"{record.path}: neither the crop nor the mask of the lesion exists.", "Download them."
            )
        return crops[0]

    def _sound(self, lesions: list[Lesion]) -> list[Lesion]:
        """Without the images that have a row which cannot be understood or contradicts another."""
        wrong: dict[tuple[str, str, str], str] = {}
        seen: dict[str, Lesion] = {}
        kept = []
        for x in lesions:
            known = seen.setdefault(x.name, x)
            first = f"{'Mass' if x.kind == 'mass' else 'Calc'}-{'Training' if x.split == 'train' else 'Test'}"
            side = {"L": "LEFT", "R": "RIGHT"}.get(x.side)
            if not all(is_plain_relative(path) for path in (x.image, x.crop, x.mask)):
                reason = "a path in the table is absolute or points outside the data set."
            elif x.case != f"{first}_{x.patient}_{side}_{x.view}":
                reason = f"patient, side or view contradicts the image path {x.image}."
            elif x.pathology not in LABELS:
                reason = f"unknown pathology {x.pathology!r}, expected {', '.join(LABELS)}."
            elif known.pathology != x.pathology:
                reason = f"conflicting labels: {known.pathology} and {x.pathology} for lesion {x.number}."
            elif known is not x:
                self.rejected.add(x.name, x.image, "duplicate row: the lesion is listed twice.")
                continue
            else:
                kept.append(x)
                continue
            wrong.setdefault(x.image_view, reason)
            self.rejected.add(x.name, x.image, reason)
        sound = [x for x in kept if x.image_view not in wrong]
        for x in kept:
            if x.image_view in wrong:
                self.rejected.add(
                    x.name, x.image, f"another row of this image is wrong: {wrong[x.image_view]}"
                )
        return sound

    def _without_leak(self, lesions: list[Lesion]) -> list[Lesion]:
        if self.split != "official":
            return lesions
        leaking = _on_both_sides(lesions)
        for x in lesions:
            if x.patient in leaking and x.split == self.leak_side:
                reason = f"leak: {x.patient} is in train and test; removed from {self.leak_side}."
                self.rejected.add(x.name, x.image, reason)
        return [x for x in lesions if x.patient not in leaking or x.split != self.leak_side]

    def _images(self, lesions: list[Lesion], files: dict[str, list[Path]]) -> list[Record]:
        views: defaultdict[tuple[str, str, str], list[Lesion]] = defaultdict(list)
        for x in lesions:
            views[x.image_view].append(x)
        records = []
        for rows in views.values():
            copies = {x.case: x for x in rows}
            found = {case: self._full_image(x, files) for case, x in copies.items()}
            usable = [case for case, path in found.items() if path is not None]
            if not usable:
                continue
            case, *others = usable
            path = found[case]
            assert path is not None
            for other in others:
                self.rejected.add(
                    other, found[other] or "", f"duplicate: same view as {case}; the labels are merged."
                )
            label = max(LABELS[x.pathology] for x in rows)
            kind = "+".join(sorted({x.kind for x in rows}))
            records.append(self._record(case, path, label, copies[case], {"lesion_type": kind}))
        return records

    def _crops(self, lesions: list[Lesion], files: dict[str, list[Path]]) -> list[Record]:
        records = []
        for x in lesions:
            parts = sorted({path for path in _lesion_files(x, files)})
            image = self._full_image(x, files, silent=bool(parts))
            if not parts:
                self.rejected.add(
                    x.name, x.mask, "missing: neither the crop nor the mask is in the data set."
                )
                continue
            names = [path.relative_to(self.root).as_posix() for path in parts]
            extra = {
                "lesion_type": x.kind,
                "assessment": x.assessment,
                "subtlety": x.subtlety,
                "margin": f"{self.margin:g}",
                "parts": ";".join(names),
            }
            records.append(self._record(x.name, image or parts[0], LABELS[x.pathology], x, extra))
        return records

    def _record(self, image_id: str, path: Path, label: int, x: Lesion, extra: dict[str, str]) -> Record:
        return Record(
            image_id=image_id,
            path=path,
            label=label,
            patient_id=x.patient,
            split=x.split if self.split == "official" else None,
            view=x.view,
            laterality=x.side,
            extra={"breast": f"{x.patient}_{x.side}", "density": x.density, **extra},
        )

    def _full_image(self, x: Lesion, files: dict[str, list[Path]], silent: bool = False) -> Path | None:
        found = files.get(_series(x.image)) or files.get(x.case) or []
        # Where a DICOM and a JPEG copy lie side by side, the DICOM has the depth.
        found = [path for path in found if path.suffix.lower() in (".dcm", ".dicom")] or found
        if len(found) > 1:
            found = [path for path in found if "full mammogram" in str(path)] or found
        if len(found) == 1:
            return found[0]
        if not silent:
            reason = "missing: not in the data set." if not found else f"ambiguous: {len(found)} files match."
            self.rejected.add(x.case, x.image, reason)
        return None

    def _reject_strangers(self, files: dict[str, list[Path]]) -> None:
        known: set[Path] = set()
        for x in self.lesions():
            for folder in (_series(x.image), _series(x.crop), _series(x.mask), x.case, x.name):
                known.update(files.get(folder, ()))
        for path in sorted({path for paths in files.values() for path in paths} - known):
            self.rejected.add(path.stem, path, "no table row names this file.")


def _series(path: str) -> str:
    """The series UID, third part of a path of the table; "" where it has fewer."""
    return dict(enumerate(path.split("/"))).get(2, "")


def _lesion_files(x: Lesion, files: dict[str, list[Path]]) -> Iterable[Path]:
    by_series = [*files.get(_series(x.crop), ()), *files.get(_series(x.mask), ())]
    return by_series or files.get(x.name) or []


def _on_both_sides(lesions: Iterable[Lesion]) -> set[str]:
    sides: defaultdict[str, set[str]] = defaultdict(set)
    for x in lesions:
        sides[x.split].add(x.patient)
    return sides["train"] & sides["test"]


def _is_mask(picture: NDArray[np.float32]) -> bool:
    """Two values, up to what JPEG does to an edge."""
    return float(np.mean((picture > 0.05) & (picture < 0.95))) < 0.01


def _box(path: Path, mask: NDArray[np.float32], shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Bounding box of the mask in pixels of the image; some masks differ from it by a few pixels in size."""
    rows, columns = (np.flatnonzero((mask > 0.5).any(axis)) for axis in (1, 0))
    if not len(rows):
        raise DataError(f"{path}: the mask of the lesion is empty.", "Leave the lesion out.")
    across, down = shape[1] / mask.shape[1], shape[0] / mask.shape[0]
    return columns[0] * across, rows[0] * down, (columns[-1] + 1) * across, (rows[-1] + 1) * down
