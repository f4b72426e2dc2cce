"""What the run that training starts from has already seen: test images of the new run must not be among it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from scorebayes.data.load import ImageSet
from scorebayes.errors import ConfigError, DataError
from scorebayes.runs.run import Run

TRAINED_ON = {"test": ("train", "val"), "val": ("train",)}
"""Splits of a new run -> the splits of its start that these must be kept apart from."""


def seen_by_start(start: Run, source: str, images: ImageSet, splits: Mapping[str, str]) -> dict[str, Any]:
    """Plain values for the audit: ``run`` (its path); ``test`` and ``val``: ids of the new run's images that it, or a run
    that it started from, was trained on, or which are of a patient it was trained on; ``not_compared``: why this is not
    known, where it is not.

    Images of the same ``source`` are compared by their ids, others by their prepared pixels.
    """
    found: dict[str, Any] = {"run": str(start.path), "test": [], "val": [], "not_compared": ""}
    seen = {name: _Seen(name_of) for name, name_of in TRAINED_ON.items()}
    steps = [start]
    while steps:
        step = steps.pop()
        try:
            for each in seen.values():
                each.add(step, source)
            steps += [before] if (before := step.start) is not None else []
        except (ConfigError, DataError) as error:
            found["not_compared"] = f"{step.path}: {error}"
    for name, each in seen.items():
        rows = [row for row, record in enumerate(images.records) if splits[record.image_id] == name]
        found[name] = [images.records[row].image_id for row in rows if each.holds(images, row)]
    return found


def seen_words(seen: Mapping[str, Any]) -> str:
    """What ``seen_by_start`` found, in words; empty where nothing is amiss."""
    parts = [f"{len(seen[name])} {name} images" for name in TRAINED_ON if seen[name]]
    if parts:
        return (
            f"The run that training starts from, {seen['run']}, has seen {' and '.join(parts)} of this run (or others of "
            f"the same patients), for example {seen[next(n for n in TRAINED_ON if seen[n])][0]}. The figures are too good."
        )
    if seen["not_compared"]:
        return (
            f"Whether the run that training starts from has seen test images of this run is not known "
            f"({seen['not_compared']})"
        )
    return ""


class _Seen:
    """The images of some splits of earlier runs: ids and patients of the same source, or pixels."""

    def __init__(self, splits: Sequence[str]) -> None:
        self.splits = splits
        self.ids: set[str] = set()
        self.patients: set[str] = set()
        self.pixels: set[bytes] = set()

    def add(self, run: Run, source: str) -> None:
        if run.config.data.source == source:
            table = run.split[run.split["split"].isin(self.splits)]
            self.ids |= set(table["image_id"])
            self.patients |= set(table["patient_id"].dropna())
            return
        for name in self.splits:
            if (run.split["split"] == name).any():
                self.pixels |= set(_digests(run.images(name).images))

    def holds(self, images: ImageSet, row: int) -> bool:
        record = images.records[row]
        return (
            record.image_id in self.ids
            or record.patient_id in self.patients
            or (bool(self.pixels) and next(iter(_digests(images.images[row : row + 1]))) in self.pixels)
        )


def _digests(images: Iterable[np.ndarray]) -> Iterable[bytes]:
    for image in images:
        pixels = np.ascontiguousarray(image)
        yield blake2b(f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes(), digest_size=16).digest()
