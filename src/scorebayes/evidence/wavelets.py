"""What a run learns of its images' wavelets, after the training of the network: in seconds to minutes."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from scorebayes.data.load import ImageSet
from scorebayes.errors import DataError
from scorebayes.evidence.mixtures import MOST_IMAGES, fit_wavelets, some_of_all_classes
from scorebayes.evidence.scattering import scattering
from scorebayes.progress import progress_bar
from scorebayes.runs.inputs import load_split
from scorebayes.runs.run import WAVELETS, Run, open_run

IMAGES_AT_A_TIME = 16  # between two steps of the progress bar


def learn_wavelets(run: Run) -> Run:
    """The run with the mixtures of its training images' wavelets in its directory; what was learned before stays.

    Images without a label take part where there are some: in the run's own training split, and in that of the label-free
    run it started from, as long as its images can be read.
    """
    if not run.config.wavelets.use or (run.path / WAVELETS).exists():
        return run
    if min(run.facts.train_counts) == 0:
        return run  # a class without images has no mixture
    start = time.perf_counter()
    images = _training_images(run)
    images = images.subset(some_of_all_classes(images.labels, MOST_IMAGES, run.config.seed))
    parts = []
    with progress_bar("wavelets", len(images)) as advance:
        for first in range(0, len(images), IMAGES_AT_A_TIME):
            parts.append(scattering(run.standardise(images.images[first : first + IMAGES_AT_A_TIME])))
            advance(min(first + IMAGES_AT_A_TIME, len(images)), "")
    found = fit_wavelets(
        torch.cat(parts), images.labels, images.patients, mirrored=run.config.train.flip, seed=run.config.seed
    )
    replace(found, seconds=time.perf_counter() - start).save(run.path / WAVELETS)
    return open_run(run.path, str(run.device))


def _training_images(run: Run) -> ImageSet:
    """The run's own and, without their labels, those of the label-free run it started from."""
    own = load_split(run, "train")
    start = run.start
    if start is None or not start.config.train.label_free:
        return own
    try:
        others = load_split(start, "train")
    except DataError:  # weights that came without their images
        return own
    new = others.subset(np.flatnonzero(~np.isin(others.keys, own.keys)))
    unlabelled = tuple(replace(record, label=None) for record in new.records)
    return ImageSet(np.concatenate([own.images, new.images]), own.bits, own.records + unlabelled)
