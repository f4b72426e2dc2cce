"""DDSM at 64x64: scanned film mammograms with case ids (Heath et al. 1998), as one npz file or as PNG files.

Films were squeezed to a square and reduced to 8 bits. There is no explicit licence: use it for evaluation, and
do not redistribute it.

The given parts are "train" and "val". Figures are reported on the given "val", so it must choose nothing: it
is our "test", and our "val" is carved out of the given "train", by ``patient_group`` and per class (see
``scorebayes.data.split``). With ``given_val = "val"`` the parts keep their names, for work that reports no
figure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.base import Record, Rejected, SourceInfo
from scorebayes.data.pixels.files import require_file
from scorebayes.data.pixels.images import read_image
from scorebayes.data.pixels.npy import read_npz
from scorebayes.data.sources.tables import read_table
from scorebayes.errors import ConfigError, DataError

BENIGN, MALIGNANT, LEFT_OUT = 0, 1, -1
COLUMNS = ("source_file", "patient_group", "laterality", "view", "label", "split")


class Ddsm64:
    """Benign against malignant, by image; a patient is in one given part only.

    Parameters
    ----------
    root: ``ddsm64.npz``, or the folder that holds it and ``labels.csv``, or a folder with ``labels.csv`` and
        the PNG files that its column ``source_file`` names.
    given_val: what the given "val" is used as, "test" or "val".
    """

    def __init__(self, root: str | Path, *, given_val: str = "test") -> None:
        if given_val not in ("test", "val"):
            raise ConfigError(f"given_val is {given_val!r}.", "Expected 'test' or 'val'.")
        self.split_names = {"val": given_val}
        given = Path(root)
        self.root = given.parent if given.suffix == ".npz" else given
        self.npz = given if given.suffix == ".npz" else given / "ddsm64.npz"
        self.packed = self.npz.exists() or given.suffix == ".npz"
        self.rejected: list[Rejected] = []
        self.notes: list[str] = []
        self._images: NDArray | None = None
        self.info = SourceInfo(
            name="ddsm64",
            title="DDSM mammograms at 64x64",
            classes=("benign", "malignant"),
            positive=MALIGNANT,
            licence="no explicit licence; for evaluation only, not for redistribution",
            citation="Heath et al., The Digital Database for Screening Mammography, IWDM 2000, 212 (2001)",
            access="local",
        )

    def records(self) -> list[Record]:
        """Images with a known class. Those of label -1 are left out: the other breast, or unproven
        findings.
        """
        self.rejected = []
        table = self.root / "labels.csv"
        rows = _rows(table) if not self.packed or table.exists() else None
        if self.packed:
            labels, splits, patients = self._columns()
            if rows is not None and [int(row["label"]) for row in rows] != labels:
                raise DataError(f"{table} and {self.npz} disagree on the labels.", "Download both again.")
        else:
            assert rows is not None
            labels = [int(row["label"]) for row in rows]
            splits, patients = ([row[name] for row in rows] for name in ("split", "patient_group"))
        records = []
        for number, label in enumerate(labels):
            row = rows[number] if rows is not None else {}
            path = self.npz if self.packed else self.root / row["source_file"]
            image_id = f"ddsm64-{number:05d}"
            if label == LEFT_OUT:
                continue
            try:
                require_file(path, self.root)
            except DataError as error:
                self.rejected.append(Rejected(image_id, str(path), error.problem))
                continue
            records.append(
                Record(
                    image_id,
                    path,
                    label=label,
                    patient_id=str(patients[number]),
                    split=self.split_names.get(str(splits[number]), str(splits[number])),
                    view=row.get("view", ""),
                    laterality=row.get("laterality", "")[:1],
                    extra={"site": row["site_letter"]} if row.get("site_letter") else {},
                )
            )
        return records

    def read(self, record: Record) -> NDArray:
        """Pixels [64, 64], float32 in [0, 1]."""
        if not self.packed:
            return read_image(record.path)
        if self._images is None:
            self._images = read_npz(self.npz, ("images",))["images"]
        row = int(record.image_id.rpartition("-")[2])
        if self._images.dtype != np.uint8 or self._images.ndim != 3 or row >= len(self._images):
            raise DataError(
                f"{self.npz}: images is {self._images.dtype} {self._images.shape}.", "Download it again."
            )
        return self._images[row].astype(np.float32) / 255

    def _columns(self) -> list[list[Any]]:
        """Labels, splits and patients of the packed file, one per image each."""
        names = ("labels", "split", "patient_group")
        arrays = read_npz(self.npz, names)
        labels = arrays["labels"]
        if (
            any(arrays[name].shape != (labels.size,) for name in names)
            or not np.isin(labels, (-1, 0, 1)).all()
        ):
            told = ", ".join(f"{name} is {arrays[name].dtype} {arrays[name].shape}" for name in names)
            raise DataError(
                f"{self.npz}: {told}.", "Expected one of each per image, and labels of -1, 0 and 1."
            )
        return [[int(label) for label in labels], *(arrays[name].tolist() for name in names[1:])]


def _rows(table: Path) -> list[dict[str, str]]:
    found = read_table(table, COLUMNS, ("site_letter",))
    for row, line in zip(found.rows, found.lines, strict=True):
        if row["label"] not in ("-1", "0", "1"):
            raise DataError(f"{table}, line {line}: label {row['label']!r}, expected -1, 0 or 1.")
    return list(found.rows)
