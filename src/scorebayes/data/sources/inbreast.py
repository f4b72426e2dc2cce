"""INbreast: full-field digital mammograms with BI-RADS assessments and contours, release 1.0."""

from __future__ import annotations

import math
import plistlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scorebayes.data.base import Record, SourceInfo
from scorebayes.data.pixels.files import require_file
from scorebayes.data.sources.mammograms import (
    CLASSES,
    MAMMOGRAPHY,
    TASKS,
    Count,
    Left,
    box_text,
    crop,
    files_by_folder,
    find_table,
    pool_breasts,
    read_mammogram,
    require_choice,
    require_margin,
)
from scorebayes.data.sources.tables import normal, read_table
from scorebayes.errors import DataError

INFO = SourceInfo(
    name="inbreast",
    title="INbreast, release 1.0",
    classes=CLASSES,
    positive=1,
    bits=14,
    licence="none stated; distributed on request",
    citation="Moreira et al. 2012, Academic Radiology 19(2), https://doi.org/10.1016/j.acra.2011.09.014",
    access="on request from the Breast Research Group, INESC Porto",
    modalities=MAMMOGRAPHY,
)
MAX_BYTES = 10_000_000  # of an annotation, and of the table
COLUMNS = ("Laterality", "View", "Acquisition date", "File Name", "ACR", "Bi-Rads")
FILE_NAME = re.compile(r"(\d{8})_([0-9a-f]{16})_MG_([LR])_(CC|ML)_ANON\.dcm", re.IGNORECASE)
CONVENTIONS = {  # BI-RADS categories of each class; the others are left out
    "1-3/4-6": ("123", "456"),
    "1-2/4-6": ("12", "456"),
    "1-2/3-6": ("12", "3456"),
}
PUBLISHED_BIRADS = {"1": 67, "2": 220, "3": 23, "4": 43, "5": 49, "6": 8}
NAMES = {  # as drawn -> what is meant
    "mass": "mass",
    "calcification": "calcification",
    "calcifications": "calcification",
    "cluster": "cluster",
    "distortion": "distortion",
    "asymmetry": "asymmetry",
    "assymetry": "asymmetry",
    "spiculated region": "spiculated region",
    "espiculated region": "spiculated region",
}


class InBreast:
    """INbreast in its native layout. Assessments, not pathology (only BI-RADS 6 is proven).

    Parameters
    ----------
    root: folder that holds ``INbreast.csv`` (or ``.xls``), ``AllDICOMs`` and, for crops, ``AllXML``; or one
    above.
    task: "image", "crop" (one image per contour; calcifications of an image together; the image's BI-RADS) or
        "breast" (images with the label of their breast; the views are pooled in reports).
    convention: BI-RADS of benign and malignant. "1-3/4-6" keeps every image; "1-2/4-6" leaves category 3 out.
    margin: around a lesion, as a share of its longer side.

    There is no official split; the patient is the hexadecimal part of the file name.
    """

    info = INFO

    def __init__(
        self,
        root: str | Path,
        *,
        task: Literal["image", "crop", "breast"] = "image",
        convention: Literal["1-3/4-6", "1-2/4-6", "1-2/3-6"] = "1-3/4-6",
        margin: float = 0.25,
    ) -> None:
        require_choice("task", task, TASKS)
        require_choice("convention", convention, tuple(CONVENTIONS))
        require_margin(margin)
        self.root = Path(root)
        self.task = task
        self.categories = CONVENTIONS[convention]
        self.margin = margin
        self.rejected: Left = Left()
        self.notes: list[str] = []

    def counts(self) -> list[Count]:
        """Images and patients against the published numbers, and images of each BI-RADS category."""
        rows = self._rows()
        files = [FILE_NAME.fullmatch(path.name) for path in self._files()]
        categories = [row["Bi-Rads"][:1] for row in rows]
        return [
            Count("images in the table", len(rows), 410),
            Count("image files", len(files), 410),
            Count("patients", len({match[2].lower() for match in files if match}), 108),
            *(Count(f"images of BI-RADS {k}", categories.count(k), n) for k, n in PUBLISHED_BIRADS.items()),
        ]

    def records(self) -> list[Record]:
        """Images (or lesions) whose file is there, in the order of the table; the others go to
        ``rejected``.
        """
        self.rejected = Left()
        files = self._by_number()
        rows: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
        for row in self._rows():
            rows[row["File Name"]].append(row)
        records = []
        for number, same in rows.items():
            path = files.pop(number, None)
            if path is None:
                self.rejected.add(number, f"AllDICOMs/{number}_*.dcm", "missing: not in the data set.")
            elif any(other != same[0] for other in same):
                self.rejected.add(number, path, f"conflicting labels: {len(same)} rows differ.")
            else:
                if len(same) > 1:
                    self.rejected.add(number, path, "duplicate row: the image is listed twice.")
                records += self._record(path, same[0])
        for number, path in files.items():
            self.rejected.add(number, path, "no table row names this file.")
        if self.task == "crop":
            annotations = {path.stem: path for path in sorted(self.root.glob("**/AllXML/*.xml"))}
            annotated = [record for record in records if record.image_id in annotations]
            return [lesion for r in annotated for lesion in self._lesions(r, annotations[r.image_id])]
        return pool_breasts(records) if self.task == "breast" else records

    def read(self, record: Record) -> NDArray[np.float32]:
        """The whole image, or the lesion with its margin."""
        image = read_mammogram(record.path, self.root)
        if self.task != "crop":
            return image
        box = [float(value) for value in record.extra["box"].split(",")]
        return crop(record.path, image, box, self.margin)

    def _rows(self) -> list[dict[str, str]]:
        try:
            path = find_table(self.root, "INbreast.csv")
        except DataError:
            if not self.root.is_dir() or not list(self.root.glob("**/INbreast.xls")):
                raise
            return _excel_rows(find_table(self.root, "INbreast.xls"))
        table = read_table(path, COLUMNS)
        self.notes = [note for note in table.notes if "semicolon" not in note]  # as published
        return list(table.rows)

    def _files(self) -> list[Path]:
        found = {path for paths in files_by_folder(self.root).values() for path in paths}
        found |= set(self.root.glob("*.dcm"))
        return sorted(path for path in found if FILE_NAME.fullmatch(path.name))

    def _by_number(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in self._files():
            number = path.name[:8]
            if number in found:
                self.rejected.add(number, path, f"duplicate: {found[number].name} has the same number.")
            else:
                found[number] = path
        return found

    def _record(self, path: Path, row: dict[str, str]) -> list[Record]:
        match = FILE_NAME.fullmatch(path.name)
        assert match is not None
        number, patient, side, view = match.groups()
        patient, side, view = patient.lower(), side.upper(), "MLO" if view.upper() == "ML" else "CC"
        birads = row["Bi-Rads"].lower()
        table_view = "MLO" if row["View"] == "ML" else row["View"]
        if (row["Laterality"], table_view) != (side, view):
            reason = (
                f"conflicting: the table says {row['Laterality']} {table_view}, the file name {side} {view}."
            )
        elif not re.fullmatch("[12356]|4[abc]?", birads):
            reason = f"unknown assessment {row['Bi-Rads']!r}, expected 1, 2, 3, 4, 4a, 4b, 4c, 5 or 6."
        elif (label := self._label(birads)) is None:
            reason = f"left out by the convention: BI-RADS {birads}."
        else:
            extra = {
                "breast": f"{patient}_{side}_{row['Acquisition date']}",
                "density": row["ACR"],
                "birads": birads,
            }
            return [Record(number, path, label, patient, None, view, side, extra)]
        self.rejected.add(number, path, reason)
        return []

    def _label(self, birads: str) -> int | None:
        return next((k for k, found in enumerate(self.categories) if birads[0] in found), None)

    def _lesions(self, record: Record, path: Path) -> list[Record]:
        """One record per contour of a lesion; images without an annotation have none."""
        try:
            regions = read_regions(path)
        except DataError as error:
            self.rejected.add(record.image_id, path, str(error))
            return []
        calcifications = [point for name, points in regions if name == "calcification" for point in points]
        lesions = [(name, points) for name, points in regions if name not in ("calcification", "")]
        if calcifications:
            lesions.append(("calcification", calcifications))
        crops = []
        for number, (name, points) in enumerate(lesions, 1):
            x, y = zip(*points, strict=True)
            extra = {
                **record.extra,
                "findings": name,
                "box": box_text((min(x), min(y), max(x), max(y))),
                "margin": f"{self.margin:g}",
            }
            crops.append(replace(record, image_id=f"{record.image_id}_{number}", extra=extra))
        return crops


def read_regions(path: Path) -> list[tuple[str, list[tuple[float, float]]]]:
    """Contours of an annotation: what is meant ("" where the name says nothing) and its points (x, y), in
    pixels.

    Regions without a point, and points of another form, are dropped. Raises DataError if the file is damaged, or is a binary
    property list, which the data set has none of: a few bytes can stand for any number of points there.
    """
    if require_file(path).st_size > MAX_BYTES:
        raise DataError(f"{path} is larger than {MAX_BYTES / 1e6:.0f} MB.", "Check that it is an annotation.")
    damaged = DataError(f"{path} is not an annotation of INbreast (Apple property list).", "Copy it again.")
    try:
        content = plistlib.loads(path.read_bytes(), fmt=plistlib.FMT_XML)
        regions = [region for image in content["Images"] for region in image["ROIs"]]
        named = [(NAMES.get(str(r["Name"]).strip().lower(), ""), _points(r["Point_px"])) for r in regions]
    except Exception:  # the parser raises anything on damaged input, and the content may be of any form
        raise damaged from None
    return [(name, points) for name, points in named if points]


def _points(texts: Sequence[Any]) -> list[tuple[float, float]]:
    found = [re.fullmatch(r"\(\s*([-+.\deE]+)\s*,\s*([-+.\deE]+)\s*\)", str(text)) for text in texts]
    points = [(float(match[1]), float(match[2])) for match in found if match]
    if not all(math.isfinite(x) and math.isfinite(y) for x, y in points):
        raise ValueError("a point lies nowhere")
    return points


def _excel_rows(path: Path) -> list[dict[str, str]]:
    """Rows of the original table: names with blanks, file names as floats, a footer without file names."""
    if require_file(path).st_size > MAX_BYTES:
        raise DataError(f"{path} is larger than {MAX_BYTES / 1e6:.0f} MB.", "Save it as INbreast.csv.")
    try:
        frame = pd.read_excel(path, dtype=str, keep_default_na=False)
    except ImportError:
        raise DataError(
            f"{path} is an old Excel file, and no reader for it is installed.",
            "Install xlrd, or save it as INbreast.csv with semicolons.",
        ) from None
    except Exception as error:  # xlrd raises its own and others on damaged files
        raise DataError(f"{path} is damaged ({type(error).__name__}).", "Copy it again.") from None
    headers = {normal(str(name)): name for name in frame.columns}
    lacking = [column for column in COLUMNS if normal(column) not in headers]
    if lacking:
        raise DataError(f"{path} lacks the column {', '.join(map(repr, lacking))}.", "Check the table.")
    rows = [
        {column: str(row[headers[normal(column)]]).strip() for column in COLUMNS}
        for _, row in frame.iterrows()
    ]
    for row in rows:
        row["File Name"] = row["File Name"].removesuffix(".0")
        row["Bi-Rads"] = row["Bi-Rads"].removesuffix(".0")
    return [row for row in rows if row["File Name"].isdigit()]
