"""The images of a run: one reader, with the run's data options, for every stage. A file is opened once."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scorebayes.data import SOURCES, open_source
from scorebayes.data.base import Record, Rejected, Source, SourceInfo
from scorebayes.data.load import ImageSet, load
from scorebayes.data.pixels.images import open_picture
from scorebayes.data.pixels.numbers import as_image, to_unit
from scorebayes.data.prepare import Prepare
from scorebayes.errors import ConfigError, DataError, command
from scorebayes.progress import progress_bar
from scorebayes.runs.config import DataConfig

WORKERS_ABOVE = 200  # images; below, starting processes costs more than it brings
PATIENCE = 2.0  # seconds; what comes from the cache is not worth a word
LEAST_SHARE = 0.5  # of the model's side: an image enlarged more than twofold shows too little to judge


class DataAndPrepare(Protocol):
    """The part of a configuration that says which images there are, and how they are prepared."""

    @property
    def data(self) -> DataConfig: ...

    @property
    def prepare(self) -> Prepare: ...


class Reader:
    """Reads and prepares images as a run does.

    folder: of the run, for its cache of prepared images. info: of the data set that the run was trained on.
    """

    def __init__(self, folder: Path, config: DataAndPrepare, info: SourceInfo) -> None:
        self.folder = folder
        self.config = config
        self.info = info

    @cached_property
    def source(self) -> Source:
        """The run's data set, with the run's options."""
        return open_source(self.config.data.source, **self._options())

    def split(self, table: pd.DataFrame, split: str) -> ImageSet:
        """The images of a split with their labels, as ``split.parquet`` (the table) lists them. DataError if the data have
        changed since."""
        stored = table.query("split == @split")
        if stored.empty:
            raise DataError(
                f"{self.folder}: the split {split!r} has no images.",
                f"Choose from {', '.join(sorted(table['split'].unique()))}.",
            )
        wanted = dict(zip(stored["image_id"], stored["label"].tolist(), strict=True))
        records = [
            # Not the source's own label: [data] label_noise may have changed it.
            replace(record, label=None if wanted[record.image_id] < 0 else wanted[record.image_id])
            for record in self.source.records()
            if record.image_id in wanted
        ]
        images, rejected = self.load(self.source, records, self._options())
        missing = wanted.keys() - set(images.keys)
        if missing:
            reason = rejected[0].reason if rejected else "it is no longer in the data set"
            raise DataError(
                f"{len(missing)} images of the split {split!r} can no longer be read, for example {min(missing)}: {reason}.",
                "Restore the data, or train a new run.",
            )
        return images

    def labelled(self, data: str) -> ImageSet:
        """The labelled images of another data set, KIND[:PATH], read with the run's options as far as that kind has them,
        and prepared like the images of the run.

        ConfigError if it has other classes, DataError if no labelled image can be used.
        """
        options = self._options(data.partition(":")[0])
        source = open_source(data, **options)
        if source.info.classes != self.info.classes:
            raise ConfigError(
                f"{data}: the classes are {', '.join(source.info.classes)}, but the run was trained on "
                f"{', '.join(self.info.classes)}.",
                "Give the classes the names of the run.",
            )
        records = [record for record in source.records() if record.label is not None]
        images, rejected = self.load(source, records, options)
        if not len(images):
            reason = f" ({rejected[0].reason})" if rejected else ""
            raise DataError(
                f"{data}: there is no usable labelled image{reason}.",
                f"See the reasons: `{command('data', 'check', data)}`.",
            )
        return images

    def file(self, path: Path) -> tuple[NDArray, str]:
        """Another file, prepared [C, S, S], and what is unusual about it, if anything. DataError if it cannot be read
        or prepared."""
        picture = open_picture(path, self.info.file_bits, self.info.modalities)
        warning = size_warning(path, picture.pixels, self.config.prepare.size)
        return self.config.prepare(picture.pixels, picture.laterality, picture.view), warning

    def array(self, pixels: NDArray) -> tuple[NDArray, str]:
        """The same of an array of one image, of any type and shape that an NPY file may have."""
        pixels = to_unit(as_image(np.asarray(pixels), "the image"), "the image", self.info.file_bits)
        warning = size_warning("the image", pixels, self.config.prepare.size)
        return self.config.prepare(pixels, "", ""), warning

    def load(
        self, source: Source, records: Sequence[Record], options: Mapping[str, Any]
    ) -> tuple[ImageSet, list[Rejected]]:
        """Records of any data set that was opened with these options, prepared as those of the run, from its cache where
        they are there."""
        # Of one file with all images every process would hold a copy, only to pass its parts on.
        one_file = len({record.path for record in records}) == 1
        workers = (os.cpu_count() or 1) if len(records) > WORKERS_ABOVE and not one_file else 0
        with progress_bar("prepare", len(records), patience=PATIENCE) as advance:
            return load(
                source, records, self.config.prepare, cache=self.folder / "cache", options=repr(sorted(options.items())),
                workers=workers, progress=lambda done, total: advance(done, ""),
            )  # fmt: skip

    def _options(self, kind: str = "") -> dict[str, Any]:
        """The run's data options. For another kind of data set only those that it also has: the depth of its files."""
        own = self.config.data.options or {}
        if kind in ("", self.config.data.source.partition(":")[0]):
            return dict(own)
        known = inspect.signature(SOURCES[kind]).parameters if kind in SOURCES else {}
        return {"bits": self.info.file_bits} if self.info.file_bits and "bits" in known else {}


def size_warning(path: Path | str, image: NDArray, side: int) -> str:
    """The warning for an image smaller than the model's size. DataError if it is far too small."""
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest >= side:
        return ""
    size = f"{width} x {height} pixels, but the model works at {side}"
    if longest < LEAST_SHARE * side:
        raise DataError(f"{path} is too small: {size}.", "Use the original at full size.")
    return f"small: {size}; it was enlarged"
