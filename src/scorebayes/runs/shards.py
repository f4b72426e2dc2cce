"""Shards: part i of n of the images of a split, which scoring is a map over.

A shard is claimed by nobody: it knows its rows and its file, and whoever scores it writes the file whole or not at all. So
any engine can spread the shards over processes or machines, and what is there is not done again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

IMAGES = 256  # of a shard: what a killed process can lose


@dataclass(frozen=True)
class Shard:
    """Part ``number`` of ``of``, with the rows from ``start`` up to ``stop``, stored in ``path``."""

    number: int
    of: int
    start: int
    stop: int
    path: Path

    @property
    def done(self) -> bool:
        return self.path.exists()

    @property
    def rows(self) -> NDArray[np.int64]:
        return np.arange(self.start, self.stop)


def shards(n_images: int, folder: Path, images: int = IMAGES) -> list[Shard]:
    """The parts of a split of so many images, in order; they do not depend on who works on them."""
    starts = range(0, n_images, images)
    return [
        Shard(
            number, len(starts), start, min(start + images, n_images), folder / f"part-{number:06d}.parquet"
        )
        for number, start in enumerate(starts)
    ]
