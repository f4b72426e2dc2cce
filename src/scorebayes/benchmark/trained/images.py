"""Changed images for the benchmarks: made from those of a split, scored once, and kept in the run directory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorebayes.benchmark.trained.corruptions import CORRUPTIONS
from scorebayes.benchmark.trained.foreign import FOREIGN
from scorebayes.data.base import Record
from scorebayes.data.load import ImageSet
from scorebayes.decision.table import EvidenceTable
from scorebayes.diffusion.likelihood import Likelihood
from scorebayes.errors import DataError
from scorebayes.runs.run import Run
from scorebayes.stages.score import read_table, score_batch, score_split, table_path

IMAGES_PER_PART = 16


def _shares(images: ImageSet) -> NDArray[np.float32]:
    """Grey values [N, C, S, S] as shares of the full scale, in [0, 1]."""
    return images.images.astype(np.float32) / np.float32(2**images.bits - 1)


def corrupted(images: ImageSet, name: str, severity: int, seed: int) -> ImageSet:
    """The images under one corruption; an image suffers the same draw at every severity."""
    return _changed(images, seed, lambda pixels, rng: CORRUPTIONS[name](pixels, severity, rng))


def foreign(images: ImageSet, name: str, seed: int) -> ImageSet:
    """One kind of foreign images, made from these."""
    return _changed(images, seed, FOREIGN[name])


def _changed(
    images: ImageSet, seed: int, change: Callable[[NDArray[np.float32], np.random.Generator], NDArray]
) -> ImageSet:
    """Every channel by the same draw, keyed by the image."""
    top = 2**images.bits - 1
    found = np.empty(images.images.shape, dtype=images.images.dtype)
    for row, (key, image) in enumerate(zip(images.keys, _shares(images), strict=True)):
        digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
        for channel, pixels in enumerate(image):
            rng = np.random.default_rng(int.from_bytes(digest, "little"))
            found[row, channel] = np.rint(change(pixels, rng) * top)
    return ImageSet(found, images.bits, images.records)


def as_images(run: Run, pixels: Sequence[NDArray], name: str) -> tuple[ImageSet, int]:
    """Pictures as read from files, prepared as the run does; and how many of them it refuses to prepare."""
    found, refused = [], 0
    for picture in pixels:
        try:
            found.append(run.config.prepare(_with_channels(picture, run.config.prepare.channels)))
        except DataError:
            refused += 1
    prepare = run.config.prepare
    shape = (0, prepare.channels, prepare.size, prepare.size)
    levels = np.stack(found) if found else np.empty(shape, np.uint8)
    records = tuple(Record(f"{name}/{row}", Path(name), label=None) for row in range(len(found)))
    return ImageSet(levels, prepare.bits, records), refused


def _with_channels(picture: NDArray, channels: int) -> NDArray:
    """Grey from colour by the mean, colour from grey by repetition."""
    if picture.ndim == 3 and channels == 1:
        return picture.mean(axis=2)
    return np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 and channels == 3 else picture


def split_table(run: Run, images: ImageSet, split: str) -> EvidenceTable:
    """The run's own table of these images of a split; scored first where that was not done. All must have values."""
    if not table_path(run, split).exists():
        score_split(run, split)
    table = read_table(run, split)
    row_of = {key: row for row, key in enumerate(table.keys)}
    return table.rows(np.array([row_of[key] for key in images.keys]))


def score_images(run: Run, images: ImageSet, likelihood: Likelihood) -> EvidenceTable:
    """The table of any images, kept under ``benchmark/images`` of the run: what is there is not scored again.

    A part is found by its content (what scores, keys and pixels), so that it can never be of other images.
    """
    folder = run.path / "benchmark" / "images"
    tables = []
    for first in range(0, len(images), IMAGES_PER_PART):
        part = images.subset(np.arange(first, min(first + IMAGES_PER_PART, len(images))))
        maker = repr([run.maker(likelihood), run.config.seed, part.keys])
        digest = hashlib.blake2b(maker.encode() + np.ascontiguousarray(part.images).tobytes(), digest_size=12)
        place = folder / digest.hexdigest()
        if not (place / "part-000000.parquet").exists():
            score_batch(run, part, likelihood).write_part(place / "part-000000.parquet")
        tables.append(EvidenceTable.read(place))
    return EvidenceTable.concatenate(tables).with_labels(images.labels)
