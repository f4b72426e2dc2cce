"""The pixels by which appearance is judged: those that the network is shown, in [0, 1]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scorebayes.data.load import ImageSet
from scorebayes.decision.appearance import MOST_IMAGES
from scorebayes.runs.inputs import load_split
from scorebayes.runs.run import Run


def pixels(run: Run, images: ImageSet) -> NDArray[np.float32]:
    """[N, C, S, S]: the middle of every grey level, as a share of the full scale."""
    return run.restore(run.standardise(images.images))


def reference_pixels(run: Run) -> NDArray[np.float32]:
    """Training and validation images [M, C, S, S] that appearance is learned from; drawn at random where there are many."""
    parts = []
    for split in ("train", "val"):
        parts.append(pixels(run, load_split(run, split).drawn(MOST_IMAGES // 2, run.config.seed)))
    return np.concatenate(parts)
