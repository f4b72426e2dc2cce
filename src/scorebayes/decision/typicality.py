"""Typicality: does an image give the denoising errors that images of this data set give?

A high likelihood is no sign that an image belongs to the data: smooth images have higher ones than the training images
themselves (Nalisnick et al. 2019, arXiv 1810.09136). What is asked here is therefore two-sided, noise level by noise
level: is the error of the best class as large as it is on the validation images, neither larger nor smaller? The errors
come from the log-likelihood table, so no further network evaluation is needed.

Simple images have small errors at every level, detailed ones large errors. The error at the finest level, which is nearly
the energy of the finest detail, serves as the measure of complexity; what it predicts of the other levels by regression is
taken off before they are judged, and it is itself one of the features.

An image that the network finds as easy as its own may still look unlike them. Where the training images are at hand, a
second judgement on the pixels stands beside the first (see ``scorebayes.decision.appearance``): an image must pass both.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scorebayes.decision.appearance import Appearance, fit_appearance
from scorebayes.decision.table import LogLikTable
from scorebayes.errors import ConfigError, DataError

SHARE_FLAGGED = 0.025
"""Of images like those of the validation split. Half of what is aimed at, since test images differ a little.

Where the appearance is judged, too, the errors have half of it, and the appearance ``SHARE_BY_APPEARANCE``.
"""
SHARE_BY_APPEARANCE = 0.02

FOLDS = 5
_LEAST_ERROR = 1e-12
_SHRINK = 5.0  # images' worth of belief that complexity predicts nothing


@dataclass(frozen=True)
class Typicality:
    """What is typical of the validation images, per noise level.

    slope: [L], change of each feature per unit of complexity (0 for the complexity itself). centre, scale: [L], median and
    robust standard deviation of the features after that. finest: the level that measures complexity. threshold: distance
    beyond which an image is atypical. kind: of the table. n: images it was fitted on. appearance: the judgement on the
    pixels; None where it was not fitted.
    """

    slope: NDArray[np.float64]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    finest: int
    threshold: float
    kind: str
    n: int
    appearance: Appearance | None = None

    def distance(self, table: LogLikTable, images: NDArray | None = None) -> NDArray[np.float64]:
        """How unlike the data set each image is [N]: the larger distance of the two judgements.

        That of the appearance is in units of its own limit, so that ``threshold`` is the limit of both. images:
        [N, C, S, S] in [0, 1], the same as in the table; needed where the appearance is judged (ConfigError).
        """
        distance = self.level_distance(table)
        if self.appearance is None:
            return distance
        if images is None:
            raise ConfigError("the appearance of the images is judged, too.", "Give their pixels.")
        return np.maximum(
            distance, self.appearance.distance(images) * (self.threshold / self.appearance.threshold)
        )

    def level_distance(self, table: LogLikTable) -> NDArray[np.float64]:
        """Root mean square over the levels of the standardised features [N]: near 1 for typical images."""
        found = features(table)
        if table.kind != self.kind or found.shape[1] != len(self.centre):
            raise ConfigError(
                f"typicality was fitted on {len(self.centre)} levels of kind {self.kind}, "
                f"the table has {found.shape[1]} of kind {table.kind}.",
                "Score the validation split with the same estimator and calibrate again.",
            )
        residual = found - found[:, [self.finest]] * self.slope
        return np.sqrt(np.square((residual - self.centre) / self.scale).mean(axis=1))

    def is_typical(self, distance: NDArray) -> NDArray[np.bool_]:
        """Where a distance is within the threshold [N]."""
        return distance <= self.threshold

    def to_dict(self) -> dict:
        """JSON-ready."""
        return _plain(asdict(self))

    @staticmethod
    def from_dict(stored: dict) -> Typicality:
        """The inverse of ``to_dict``."""
        arrays = {key: np.asarray(stored[key], dtype=np.float64) for key in ("slope", "centre", "scale")}
        appearance = stored.get("appearance")
        looks = None if appearance is None else Appearance.from_dict(appearance)
        return Typicality(**{**stored, **arrays, "appearance": looks})


def _plain(content: dict) -> dict:
    return {
        key: value.tolist()
        if isinstance(value, np.ndarray)
        else _plain(value)
        if isinstance(value, dict)
        else value
        for key, value in content.items()
    }


def features(table: LogLikTable) -> NDArray[np.float64]:
    """What is judged, per level [N, L]: minus the value of the best class (for the class score, a log of its error)."""
    return -table.level_means.max(axis=2)


def fit_typicality(
    table: LogLikTable, *, images: NDArray | None = None, share: float = SHARE_FLAGGED, seed: int = 0
) -> Typicality:
    """Learn what is typical from validation images, whose labels are not used.

    ``images`` [M, C, S, S] in [0, 1], of training and validation: the appearance is judged, too.

    The threshold is the conformal quantile (Vovk et al. 2005, section 2.2) of distances measured on images held out in
    turn. With fewer than 1 / ``share`` - 1 images it is the largest of them, and about 1 / (n + 1) of the images are
    flagged. Raises DataError where fewer than four images have values.
    """
    table = table.usable()
    if len(table) < 4:
        raise DataError(
            f"typicality needs at least four validation images with a likelihood, got {len(table)}.",
            "Give more validation data.",
        )
    if images is not None:
        appearance = fit_appearance(images, SHARE_BY_APPEARANCE, seed)
        return replace(fit_typicality(table, share=share / 2, seed=seed), appearance=appearance)
    held_out = np.empty(len(table))
    order = np.random.default_rng(seed).permutation(len(table))
    for part in np.array_split(order, min(FOLDS, len(table))):
        held_out[part] = _fit(table.rows(np.setdiff1d(order, part)), np.inf).level_distance(table.rows(part))
    rank = min(len(table), int(np.ceil((len(table) + 1) * (1 - share))))
    return _fit(table, float(np.sort(held_out)[rank - 1]))


def _fit(table: LogLikTable, threshold: float) -> Typicality:
    found = features(table)
    n = len(found)
    levels = np.unique(table.level)
    finest = int(np.argmax([table.log_snr[table.level == level].mean() for level in levels]))
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
    return Typicality(slope, centre, np.maximum(scale, 1e-9), finest, threshold, table.kind, n)
