"""Images with masks in memory, as training and judging need them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorebayes.data import MaskSource, open_mask_source
from scorebayes.data.base import Record, Rejected
from scorebayes.data.load import ImageSet
from scorebayes.data.masks import ODDITIES, Frame, load_masks, oddities_of
from scorebayes.errors import DataError
from scorebayes.progress import progress_bar
from scorebayes.runs.reader import PATIENCE, Reader
from scorebayes.segmentation.config import MaskConfig
from scorebayes.segmentation.distance import signed_distance

LARGEST_DEFAULT_SIZE = 64
STEPS = 1000


@dataclass(frozen=True, eq=False)
class MaskedSet:
    """Prepared images, their masks [N, S, S], and where each image lies in its square; row by row."""

    images: ImageSet
    masks: NDArray[np.bool_]
    frames: tuple[Frame, ...]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def keys(self) -> tuple[str, ...]:
        return self.images.keys

    @property
    def areas(self) -> NDArray[np.float64]:
        """Pixels inside [N], of the prepared image."""
        return self.masks.sum(axis=(1, 2)).astype(np.float64)

    def distances(self) -> NDArray[np.float32]:
        """Signed distances [N, S, S] in pixels of the prepared image."""
        return np.stack([signed_distance(mask) for mask in self.masks])

    def subset(self, rows: Sequence[int] | NDArray[np.integer]) -> MaskedSet:
        """The given rows, in the given order."""
        rows = np.asarray(rows, dtype=np.int64)
        return MaskedSet(self.images.subset(rows), self.masks[rows], tuple(self.frames[r] for r in rows))


def suggest(source: MaskSource, records: Sequence[Record]) -> dict[str, Any]:
    """What a data set implies for the configuration. DataError if none of its images can be read."""
    for record in records:
        try:
            side = max(source.read(record).shape[:2])
        except DataError:
            continue
        return {
            "prepare": {
                "size": min(side, LARGEST_DEFAULT_SIZE),
                "channels": source.info.channels,
                "bits": source.info.bits,
            },
            "train": {"steps": STEPS},
        }
    raise DataError(f"{source.info.title}: none of the {len(records)} images can be read.")


def read_all(
    folder: Path,
    config: MaskConfig,
    source: MaskSource,
    records: Sequence[Record],
    options: Mapping[str, Any],
) -> tuple[MaskedSet, list[Rejected]]:
    """Images with masks of any data set, prepared as those of the run in ``folder``; and what cannot be used."""
    reader = Reader(folder, config, source.info)
    images, rejected = reader.load(source, records, options)
    with progress_bar("masks", len(images), patience=PATIENCE) as advance:
        masks, frames, without = load_masks(
            source, images.records, config.prepare.size, lambda done: advance(done, "")
        )
    bad = {entry.image_id for entry in without}
    if bad:
        images = images.subset([row for row, key in enumerate(images.keys) if key not in bad])
    return MaskedSet(images, masks, tuple(frames)), [*rejected, *without]


def mask_source(config: MaskConfig) -> MaskSource:
    """The data set of a run, with the run's options."""
    return open_mask_source(config.data.source, **(config.data.options or {}))


def oddities(found: MaskedSet) -> dict[str, int]:
    """How many prepared masks there are, and how many of them are odd in each way."""
    counts = Counter(name for mask in found.masks for name in oddities_of(mask))
    return {"masks": len(found), **{name: counts[name] for name in ODDITIES}}
