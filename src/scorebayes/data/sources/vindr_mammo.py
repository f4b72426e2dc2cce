"""VinDr-Mammo: full-field digital mammograms with the radiologists' BI-RADS assessments, as PhysioNet ships
them.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from dataclasses import replace
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
    box_text,
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

INFO = SourceInfo(
    name="vindr-mammo",
    title="VinDr-Mammo 1.0.0",
    classes=CLASSES,
    positive=1,
    bits=12,
    licence="PhysioNet Restricted Health Data License 1.5.0",
    citation="Nguyen et al. 2023, Scientific Data 10, 277, https://doi.org/10.1038/s41597-023-02100-7",
    access="PhysioNet, after signing: https://physionet.org/content/vindr-mammo/1.0.0/",
    modalities=MAMMOGRAPHY,
)
BREASTS = "breast-level_annotations.csv"
FINDINGS = "finding_annotations.csv"
METADATA = "metadata.csv"
BREAST_COLUMNS = (
    "study_id",
    "image_id",
    "laterality",
    "view_position",
    "breast_birads",
    "breast_density",
    "split",
)
BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")
FINDING_COLUMNS = ("image_id", "finding_categories", "finding_birads", *BOX_COLUMNS)
SPLITS = {"training": "train", "test": "test"}
CONVENTIONS = {  # BI-RADS categories of each class; the others are left out
    "1-3/4-5": ("123", "45"),
    "1-2/4-5": ("12", "45"),
    "1-2/3-5": ("12", "345"),
}


class VindrMammo:
    """VinDr-Mammo in its native layout. The labels are assessments, not pathology.

    Parameters
    ----------
    root: folder with the tables and ``images/<study>/<image>.dicom``, or one above it.
    task: "image" (its breast's BI-RADS, as the publishers give it for each image), "crop" (one image per
        boxed finding, by the finding's BI-RADS) or "breast" (the same labels; the views are pooled in
        reports).
    convention: BI-RADS of benign and malignant; "1-3/4-5" is that of the source paper.
    split: "official", or "none" for a new split of the exams.
    margin: around a finding, as a share of its longer side.
    """

    info = INFO

    def __init__(
        self,
        root: str | Path,
        *,
        task: Literal["image", "crop", "breast"] = "image",
        convention: Literal["1-3/4-5", "1-2/4-5", "1-2/3-5"] = "1-3/4-5",
        split: Literal["official", "none"] = "official",
        margin: float = 0.25,
    ) -> None:
        require_choice("task", task, TASKS)
        require_choice("convention", convention, tuple(CONVENTIONS))
        require_choice("split", split, ("official", "none"))
        require_margin(margin)
        self.root = Path(root)
        self.task = task
        self.categories = CONVENTIONS[convention]
        self.split = split
        self.margin = margin
        self.rejected: Left = Left()
        self.notes: list[str] = []

    def counts(self) -> list[Count]:
        """Exams, images and assessments against the published numbers."""
        rows = self._rows()
        split = [row["split"] for row in rows]
        malignant = sum(row["breast_birads"] in ("BI-RADS 4", "BI-RADS 5") for row in rows)
        return [
            Count("exams", len({row["study_id"] for row in rows}), 5000),
            Count("images", len(rows), 20000),
            Count("training images", split.count("training"), 16000),
            Count("test images", split.count("test"), 4000),
            Count("images of BI-RADS 4 or 5", malignant, 988),
        ]

    def records(self) -> list[Record]:
        """Images (or findings) whose file is there, in the order of the table; the others go to
        ``rejected``.
        """
        self.rejected = Left()
        files = files_by_folder(self.root)
        paths = {
            (folder, path.stem): path
            for folder, found in files.items()
            for path in found
            if path.parent.name == folder
        }
        all_rows = self._rows()
        rows = self._sound(all_rows)
        vendors = self._vendors()
        findings = self._findings()
        records = []
        for row in rows:
            image_id, study = row["image_id"], row["study_id"]
            path = paths.pop((study, image_id), None)
            if path is None:
                self.rejected.add(
                    image_id, f"images/{study}/{image_id}.dicom", "missing: not in the data set."
                )
                continue
            extra = {
                "breast": f"{study}_{row['laterality']}",
                "density": row["breast_density"].removeprefix("DENSITY "),
                "birads": row["breast_birads"].removeprefix("BI-RADS "),
            }
            if image_id in vendors:
                extra["vendor"] = vendors[image_id]
            if findings:
                names = {name for categories, _, _ in findings.get(image_id, ()) for name in categories}
                extra["findings"] = "; ".join(sorted(names))
            split = SPLITS[row["split"]] if self.split == "official" else None
            record = Record(
                image_id, path, None, study, split, row["view_position"], row["laterality"], extra
            )
            records += self._labelled(record, findings.get(image_id, []))
        named = {row["image_id"] for row in all_rows}
        for (_, stem), path in paths.items():
            if stem not in named:
                self.rejected.add(stem, path, "no table row names this file.")
        return pool_breasts(records) if self.task == "breast" else records

    def read(self, record: Record) -> NDArray[np.float32]:
        """The whole image, or the finding with its margin."""
        image = read_mammogram(record.path, self.root)
        if self.task != "crop":
            return image
        box = [float(value) for value in record.extra["box"].split(",")]
        return crop(record.path, image, box, self.margin)

    def _rows(self) -> tuple[dict[str, str], ...]:
        table = read_table(find_table(self.root, BREASTS), BREAST_COLUMNS)
        self.notes = list(table.notes)
        return table.rows

    def _sound(self, rows: tuple[dict[str, str], ...]) -> list[dict[str, str]]:
        """Without rows that cannot be understood, contradict each other or are there twice."""
        by_image: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
        for row in rows:
            by_image[row["image_id"]].append(row)
        kept = []
        for image_id, same in by_image.items():
            row = same[0]
            if any(other != row for other in same):
                reason = f"conflicting labels: {len(same)} rows differ."
            elif not (is_plain_relative(image_id) and is_plain_relative(row["study_id"])):
                reason = "the ids in the table do not name a file inside the data set."
            elif not re.fullmatch("BI-RADS [1-5]", row["breast_birads"]):
                reason = f"unknown assessment {row['breast_birads']!r}, expected BI-RADS 1 to 5."
            elif row["split"] not in SPLITS:
                reason = f"unknown split {row['split']!r}, expected training or test."
            elif row["laterality"] not in ("L", "R"):
                reason = f"unknown laterality {row['laterality']!r}, expected L or R."
            else:
                kept.append(row)
                reason = "duplicate row: the image is listed twice." if len(same) > 1 else ""
            if reason:
                self.rejected.add(image_id, BREASTS, reason)
        return kept

    def _labelled(self, record: Record, findings: list[Finding]) -> list[Record]:
        if self.task != "crop":
            label = self._label(record.extra["birads"])
            if label is None:
                reason = f"left out by the convention: BI-RADS {record.extra['birads']}."
                self.rejected.add(record.image_id, record.path, reason)
                return []
            return [replace(record, label=label)]
        crops = []
        for number, (categories, birads, box) in enumerate(findings, 1):
            name = f"{record.image_id}_{number}"
            if box is None:
                continue  # "No Finding" has no place
            label = self._label(birads)
            if label is None:
                self.rejected.add(name, record.path, f"left out: BI-RADS {birads or 'not given'}.")
                continue
            extra = {
                **record.extra,
                "birads": birads,
                "findings": "; ".join(categories),
                "box": box_text(box),
                "margin": f"{self.margin:g}",
            }
            crops.append(replace(record, image_id=name, label=label, extra=extra))
        return crops

    def _label(self, birads: str) -> int | None:
        return next((k for k, found in enumerate(self.categories) if birads and birads in found), None)

    def _vendors(self) -> dict[str, str]:
        """Maker and model of each image, for subgroups; the age and all else of the table is not read."""
        paths = sorted(self.root.glob(f"**/{METADATA}")) if self.root.is_dir() else []
        if not paths:
            return {}
        model = "Manufacturer's Model Name"
        table = read_table(paths[0], ("SOP Instance UID", "Manufacturer"), (model,))
        self.notes += table.notes
        return {
            row["SOP Instance UID"]: " ".join([row["Manufacturer"], row.get(model, "")]).strip()
            for row in table.rows
        }

    def _findings(self) -> dict[str, list[Finding]]:
        """Image id -> its findings. Only the task "crop" needs the table; without it the findings stay
        unnamed.
        """
        paths = sorted(self.root.glob(f"**/{FINDINGS}")) if self.root.is_dir() else []
        if not paths and self.task != "crop":
            return {}
        table = read_table(find_table(self.root, FINDINGS), FINDING_COLUMNS)
        self.notes += table.notes
        findings: defaultdict[str, list[Finding]] = defaultdict(list)
        for row in table.rows:
            try:
                findings[row["image_id"]].append(_finding(row))
            except (ValueError, SyntaxError):
                self.rejected.add(row["image_id"], FINDINGS, "a finding that cannot be read.")
        return findings


Finding = tuple[tuple[str, ...], str, tuple[float, ...] | None]  # categories, BI-RADS, box


def _finding(row: dict[str, str]) -> Finding:
    """Categories come as a Python list in text; the box is empty for "No Finding". ValueError if
    malformed.
    """
    categories = ast.literal_eval(row["finding_categories"][:1000])
    if not isinstance(categories, list) or not all(isinstance(name, str) for name in categories):
        raise ValueError
    birads = row["finding_birads"].removeprefix("BI-RADS ")
    corners = [row[column] for column in BOX_COLUMNS]
    if not any(corners):
        return tuple(categories), birads, None
    box = tuple(float(corner) for corner in corners)
    if not np.isfinite(box).all() or box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError
    return tuple(categories), birads, box
