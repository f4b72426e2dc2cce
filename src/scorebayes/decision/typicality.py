"""Typicality: does an image give the denoising errors that images of this data set give?

A high likelihood is no sign that an image belongs to the data: smooth images have higher ones than the training images
themselves (Nalisnick et al. 2019, arXiv 1810.09136). The check here is therefore two-sided, noise level by noise
level: is the error of the best class as large as it is on the validation images, neither larger nor smaller? The errors
come from the evidence table, so no further network evaluation is needed.

Simple images have small errors at every level, detailed ones large errors. The error at the finest level, which is nearly
the energy of the finest detail, serves as the measure of complexity; what it predicts of the other levels by regression is
taken off before they are judged, and it is itself one of the features.

An image that the network finds as easy as the training images may still look different from them. If the training images
are available, a second check looks at the pixels (see ``scorebayes.decision.appearance``). An image must pass both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorebayes.decision.appearance import (
    LEAST_IMAGES,
    Appearance,
    conformal_threshold,
    fit_appearance,
)
from scorebayes.decision.folds import held_out
from scorebayes.decision.table import Block, EvidenceTable
from scorebayes.errors import ConfigError, DataError

SHARE_FLAGGED = 0.025
"""Of images like those of the validation split. Half of the intended share, because test images differ a little.

If the appearance is judged as well, the errors get half of it, and the appearance gets ``SHARE_BY_APPEARANCE``.
"""
SHARE_BY_APPEARANCE = 0.02

FOLDS = 5
_LEAST_ERROR = 1e-12
_SHRINK = 5.0  # images' worth of belief that complexity predicts nothing


@dataclass(frozen=True)
class LevelTypicality:
    """What is typical of a source's values, level by level.

    slope: [L], change of each feature per unit of complexity (0 for the complexity itself). centre, scale: [L], median and
    robust standard deviation of the features after that. finest: the level that measures complexity. threshold: distance
    beyond which an image is atypical. kind: of the values. n: images it was fitted on.
    """

    slope: NDArray[np.float64]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    finest: int
    threshold: float
    kind: str
    n: int

    def distance(self, block: Block) -> NDArray[np.float64]:
        """Root mean square over the levels of the standardised features [N]: near 1 for typical images."""
        found = features(block)
        if block.kind != self.kind or found.shape[1] != len(self.centre):
            raise ConfigError(
                f"typicality was fitted on {len(self.centre)} levels of kind {self.kind}, "
                f"but the table has {found.shape[1]} of kind {block.kind}.",
                "Score the validation split with the same estimator and calibrate again.",
            )
        residual = found - found[:, [self.finest]] * self.slope
        return np.sqrt(np.square((residual - self.centre) / self.scale).mean(axis=1))

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> LevelTypicality:
        """From ``dataclasses.asdict``, also through JSON."""
        arrays = {key: np.asarray(stored[key], dtype=np.float64) for key in ("slope", "centre", "scale")}
        return LevelTypicality(**{**stored, **arrays})


@dataclass(frozen=True)
class Typicality:
    """Every judgement that an image must pass: its levels by source, and its appearance (None where it was not fitted)."""

    levels: Mapping[str, LevelTypicality]
    appearance: Appearance | None = None

    @property
    def threshold(self) -> float:
        """The distance beyond which an image is atypical: all judgements are in units of the first one's limit."""
        first = next(iter(self.levels.values()), None) or self.appearance
        assert first is not None  # one of them was fitted
        return first.threshold

    def distance(self, table: EvidenceTable, images: NDArray | None = None) -> NDArray[np.float64]:
        """How unlike the data set each image is [N]: the largest distance of all judgements, in units of ``threshold``.

        images: [N, C, S, S] in [0, 1], the same as in the table; needed where the appearance is judged (ConfigError).
        """
        distances = [self.level_distance(table)]
        if self.appearance is not None:
            if images is None:
                raise ConfigError(
                    "typicality also judges the appearance of the images.", "Give their pixels as well."
                )
            distances.append(self.appearance.distance(images) * (self.threshold / self.appearance.threshold))
        return np.max(distances, axis=0)

    def level_distance(self, table: EvidenceTable) -> NDArray[np.float64]:
        """The same by the levels of the sources alone [N]; zero where no source has levels that were judged."""
        each = [
            judge.distance(table.blocks[name]) * (self.threshold / judge.threshold)
            for name, judge in self.levels.items()
        ]
        return np.max(each, axis=0) if each else np.zeros(len(table))

    def is_typical(self, distance: NDArray) -> NDArray[np.bool_]:
        """Where a distance is within the threshold [N]."""
        return distance <= self.threshold

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return _plain(asdict(self))

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> Typicality:
        """The inverse of ``to_dict``."""
        appearance = stored.get("appearance")
        return Typicality(
            {name: LevelTypicality.from_dict(of) for name, of in stored["levels"].items()},
            None if appearance is None else Appearance.from_dict(appearance),
        )


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    return content.tolist() if isinstance(content, np.ndarray) else content


def features(block: Block) -> NDArray[np.float64]:
    """What is judged, per level [N, L]: minus the value of the best class (for the class score, a log of its error)."""
    return -block.level_means.max(axis=2)


def fit_typicality(
    table: EvidenceTable,
    *,
    images: NDArray | None = None,
    patients: Sequence = (),
    share: float = SHARE_FLAGGED,
    seed: int = 0,
) -> Typicality:
    """Learn what is typical from validation images, whose labels are not used.

    Sources are judged if their values show how well the image itself fits; differences between classes do not show that.
    ``images`` [M, C, S, S] in [0, 1], of training and validation: the appearance is judged as well. ``patients`` [M]: of
    these images; by default each is one.

    The threshold is the conformal quantile of distances measured on patients held out in turn. With fewer than
    1 / ``share`` - 1 images it is the largest of them, and about 1 / (n + 1) of the images are flagged. Raises DataError
    where fewer than four images have values.
    """
    table = table.usable()
    if len(table) < 4:
        raise DataError(
            f"typicality needs at least four validation images with a likelihood, got {len(table)}.",
            "Give more validation data.",
        )
    judged = {name: block for name, block in table.blocks.items() if block.kind != "log-ratio"}
    if not judged and images is None:
        raise DataError("no source of evidence says how typical an image is.", "Give the images as well.")
    levels_share = share if images is None else share / 2
    levels = {
        name: _fit_levels(block, table.patients, levels_share / len(judged), seed)
        for name, block in judged.items()
    }
    appearance = None if images is None else fit_appearance(images, SHARE_BY_APPEARANCE, seed, patients)
    return Typicality(levels, appearance)


def typicality_of_place(
    known: Typicality | None, table: EvidenceTable, images: NDArray, seed: int = 0
) -> Typicality | None:
    """What is typical of another place, from images there: ``images`` [N, C, S, S] in [0, 1], those of ``table``.

    Where they are fewer than ``LEAST_IMAGES``, the look is the known one, and only its threshold is of the place.
    """
    if known is None:
        return None
    if len(images) >= LEAST_IMAGES:
        return fit_typicality(table, images=images, patients=table.patients, seed=seed)
    levels = fit_typicality(table, share=SHARE_FLAGGED / 2, seed=seed).levels if known.levels else {}
    look = known.appearance
    return Typicality(levels, look and look.with_threshold_of(images, SHARE_BY_APPEARANCE))


def _fit_levels(block: Block, patients: Sequence, share: float, seed: int) -> LevelTypicality:
    distances, everyone = np.empty(len(block.nfe)), np.arange(len(block.nfe))
    for part in held_out(patients, FOLDS, seed):
        distances[part] = _fit(block.rows(np.setdiff1d(everyone, part)), np.inf).distance(block.rows(part))
    return _fit(block, conformal_threshold(distances, share))


def _fit(block: Block, threshold: float) -> LevelTypicality:
    found = features(block)
    n = len(found)
    finest = int(np.argmax(block.level_log_snr)) if np.isfinite(block.level_log_snr).all() else 0
    centred = found - np.median(found, axis=0)
    complexity = centred[:, finest]
    energy = float(complexity @ complexity)
    slope = centred.T @ complexity / max(energy * (1 + _SHRINK / n), _LEAST_ERROR)
    slope[finest] = 0.0
    residual = found - found[:, [finest]] * slope
    centre = np.median(residual, axis=0)
    away = np.abs(residual - centre)
    # The median of the deviations resists outliers; half the standard deviation keeps it from vanishing.
    scale = np.maximum(1.4826 * np.median(away, axis=0), 0.5 * residual.std(axis=0))
    return LevelTypicality(slope, centre, np.maximum(scale, 1e-9), finest, threshold, block.kind, n)
