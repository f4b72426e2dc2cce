"""What the mammography data sets share: tasks, places of files, regions, pooled breasts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scorebayes.data import read_image
from scorebayes.data.base import Record, Rejected
from scorebayes.data.pixels.files import files_below, require_file
from scorebayes.errors import ConfigError, DataError

TASKS = ("image", "crop", "breast")
CLASSES = ("benign", "malignant")
MAMMOGRAPHY = ("MG",)  # the Modality of a DICOM file
ENDINGS = (".dcm", ".dicom", ".jpg", ".jpeg", ".png", ".tif", ".tiff")


class Count(NamedTuple):
    """A count from the tables and the published count."""

    what: str
    found: int
    published: int


class Left(list[Rejected]):
    """Rows and images left out, each with its reason."""

    def add(self, image_id: str, path: Path | str, reason: str) -> None:
        self.append(Rejected(image_id, str(path), reason))


def require_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """ConfigError if an option has an unknown value."""
    if value not in choices:
        raise ConfigError(f"{option} is {value!r}, expected {', '.join(map(repr, choices))}.")


def require_margin(margin: float) -> None:
    """ConfigError for a margin that is no share of the lesion's size."""
    if not 0 <= margin <= 10:
        raise ConfigError(f"margin is {margin}, but a share of the lesion's size from 0 to 10 is expected.")


def find_table(root: Path, name: str) -> Path:
    """A table in the folder given, at most three folders below it. DataError where it is missing or there are
    two.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.", "Give the folder of the unpacked download.")
    found = sorted(path for depth in range(4) for path in root.glob("*/" * depth + name))
    if not found:
        raise DataError(
            f"{name} is not in {root}.", "Give the folder of the unpacked download, tables included."
        )
    if len({path.read_bytes() for path in found}) > 1:
        raise DataError(
            f"{root} holds several different tables named {name}.", "Give the folder of one release."
        )
    return found[0]


def files_by_folder(root: Path) -> dict[str, list[Path]]:
    """Image files below ``root`` under the name of each of their folders (case names, UIDs), sorted."""
    found: defaultdict[str, list[Path]] = defaultdict(list)
    # Of a folder that cannot be opened, the set's table misses the images by name.
    for path in files_below(root, unreadable=lambda _error: None):
        if path.name.lower().endswith(ENDINGS):
            for part in path.relative_to(root).parts[:-1]:
                found[part].append(path)
    return dict(found)


def is_plain_relative(text: str) -> bool:
    """True for a path of a table that cannot lead out of the data set."""
    path = Path(text.replace("\\", "/"))
    return bool(text) and not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0]


def pool_breasts(records: Iterable[Record]) -> list[Record]:
    """The task "breast": every view gets the label of its breast (malignant if one of its views is).

    The breast's name is in ``extra["breast"]``; the views of one are pooled when results are reported.
    """
    records = list(records)
    worst: dict[str, int] = {}
    for record in records:
        if record.label is not None:
            breast = record.extra["breast"]
            worst[breast] = max(worst.get(breast, 0), record.label)
    return [replace(record, label=worst.get(record.extra["breast"])) for record in records]


def box_text(box: Sequence[float]) -> str:
    """x_min, y_min, x_max, y_max in pixels of the full image, as kept in ``extra["box"]``."""
    return ",".join(f"{value:g}" for value in box)


def crop(path: Path, pixels: NDArray[np.float32], box: Sequence[float], margin: float) -> NDArray[np.float32]:
    """The square around a box, widened by ``margin`` of its longer side on each side, cut at the image's
    border.
    """
    height, width = pixels.shape[:2]
    left, top, right, bottom = box
    half = (0.5 + margin) * max(right - left, bottom - top, 16.0)
    x, y = (left + right) / 2, (top + bottom) / 2
    columns = slice(max(0, round(x - half)), min(width, round(x + half)))
    rows = slice(max(0, round(y - half)), min(height, round(y + half)))
    if columns.start >= columns.stop or rows.start >= rows.stop:
        raise DataError(
            f"{path}: the lesion at {box_text(box)} lies outside the image.", "Check the annotation."
        )
    return pixels[rows, columns]


def read_mammogram(path: Path, root: Path) -> NDArray[np.float32]:
    """Pixels of a mammogram inside ``root``: DICOM of modality MG, or the JPEG and PNG copies in
    circulation.
    """
    require_file(path, root)
    return read_image(path, modalities=MAMMOGRAPHY)
