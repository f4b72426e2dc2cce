"""What a data set is: records (tables only) and pixels, read one by one.

A new data set is one file with a class that fits ``Source`` and one line in ``SOURCES`` (see ``scorebayes.data``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Record:
    """One image as the tables describe it; nothing of it needs the pixels.

    ``patient_id`` is None where the data set has none; ``label`` is None where it is unknown (prediction);
    ``split`` is the official one ("train", "val", "test") or None. ``extra`` holds further columns for subgroup
    tables (density, vendor, lesion type), never anything that identifies a person.
    """

    image_id: str
    path: Path
    label: int | None = None
    patient_id: str | None = None
    split: str | None = None
    view: str = ""
    laterality: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """An image (or table row) that was left out, and why. Sources list them in ``rejected`` after ``records()``."""

    image_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class SourceInfo:
    """What a user must know about a data set before trusting a number from it.

    ``positive`` is the index of the class that "sensitivity" refers to. ``bits`` is the true bit depth of the grey
    values, ``channels`` 1 (grey) or 3 (RGB). ``synthetic`` data are named so wherever they are shown. ``modalities``:
    DICOM modalities that a classifier trained on it accepts; empty for any. ``file_bits``: true depth of files that store
    fewer bits in 16, where an option says so; further files are read as these were.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    positive: int
    bits: int = 8
    channels: int = 1
    licence: str = ""
    citation: str = ""
    access: str = ""
    synthetic: bool = False
    modalities: tuple[str, ...] = ()
    file_bits: int | None = None


class Source(Protocol):
    """A data set on disk (or in the program). ``notes``: what was guessed or passed over, one sentence each."""

    info: SourceInfo
    rejected: list[Rejected]
    notes: list[str]

    def records(self) -> list[Record]:
        """All images, in a stable order. Raises DataError where a table is missing or malformed."""
        ...

    def read(self, record: Record) -> NDArray:
        """Pixels, [H, W] (grey) or [H, W, 3] (RGB), float32 in [0, 1], background dark. DataError if unreadable."""
        ...


class MaskSource(Source, Protocol):
    """A data set whose images have masks, for segmentation."""

    def mask(self, record: Record) -> NDArray[np.bool_]:
        """Where the object is, [H, W] as the pixels of the image; nowhere, if there is none. DataError if unusable."""
        ...
