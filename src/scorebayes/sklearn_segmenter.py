"""The segmenter in the style of scikit-learn.

    model = ScoreBayesSegmenter().fit(images, masks, groups=patients)
    model.predict(new_images)          # masks
    model.answers(new_images)          # with probability, standard deviation, area and its interval

Images are arrays [N, H, W] or [N, H, W, 3] of uint8, uint16, or floating-point numbers in [0, 1]; masks are [N, H, W], 0
outside.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from scorebayes.data.sources.masked_arrays import save_masked_arrays
from scorebayes.errors import ConfigError, DataError
from scorebayes.progress import progress_shown
from scorebayes.runs.config import checked_seed
from scorebayes.runs.device import pick_device
from scorebayes.segmentation.answer import MaskAnswer
from scorebayes.segmentation.decision import dice_of
from scorebayes.segmentation.stages import train_masks
from scorebayes.segmenter import open_segmenter


class ScoreBayesSegmenter(BaseEstimator):
    """The posterior over masks, learned and calibrated on the images of ``fit``.

    Parameters
    ----------
    preset: "tiny", "light" or "small". steps: training steps; None: 1000, or those of the preset.
    validation: share of the patients held out from training, for calibration and for choosing the weights.
    config: further sections of the configuration, for example ``{"segment": {"samples": 16}}``.
    path: the run directory, which must be new. None: a temporary one that lives as long as the segmenter.
    device: "auto", "cpu", "cuda" or "mps". random_state: seed of everything. verbose: 1 shows the progress.

    Attributes
    ----------
    run_: the trained run.
    """

    def __init__(
        self,
        preset: str = "small",
        *,
        steps: int | None = None,
        validation: float = 0.2,
        config: Mapping[str, Mapping[str, Any]] | None = None,
        path: str | Path | None = None,
        device: str = "auto",
        random_state: int = 0,
        verbose: int = 0,
    ) -> None:
        self.preset = preset
        self.steps = steps
        self.validation = validation
        self.config = config
        self.path = path
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> ScoreBayesSegmenter:
        """Train and calibrate. X: images; y: masks [N, H, W]; groups [N]: patients, whom no split divides.

        DataError for unusable images or masks, ConfigError for parameters that do not fit.
        """
        images, masks = np.asarray(X), np.asarray(y)
        if masks.shape != images.shape[:3]:
            raise ConfigError(
                f"y has shape {masks.shape} for images of shape {images.shape}.",
                "Give one mask per image, of its height and width.",
            )
        self._folder = tempfile.TemporaryDirectory(prefix="scorebayes-") if self.path is None else None
        path = Path(self._folder.name) / "run" if self._folder else Path(self.path or "")
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.with_name(f"{path.name}-images.npz")
        save_masked_arrays(data, images, masks, groups)
        layer = {
            "seed": checked_seed(self.random_state),
            "data": {"fractions": [1 - self.validation, self.validation, 0.0]},
            "train": {} if self.steps is None else {"steps": self.steps},
        }
        with progress_shown(self.verbose > 0):
            train_masks(
                path,
                f"arrays:{data.resolve()}",
                [layer, self.config or {}],
                self.preset,
                pick_device(self.device),
            )
        self.run_ = open_segmenter(path, self.device)
        return self

    def answers(self, X: ArrayLike) -> list[MaskAnswer]:
        """One for each image, or the reason why there is none."""
        check_is_fitted(self, "run_")
        return [self.run_.predict(image) for image in np.asarray(X)]

    def predict(self, X: ArrayLike) -> NDArray[np.bool_]:
        """Masks [N, H, W]. DataError naming the images that are not usable."""
        return np.stack([_given(answer.mask, row, answer) for row, answer in enumerate(self.answers(X))])

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Probability of being inside [N, H, W]."""
        answers = self.answers(X)
        return np.stack([_given(answer.probability, row, answer) for row, answer in enumerate(answers)])

    def score(self, X: ArrayLike, y: ArrayLike) -> float:
        """Mean Dice; 1 for an empty mask that was found empty."""
        return float(dice_of(self.predict(X), np.asarray(y) > 0).mean())


def _given(found: NDArray | None, row: int, answer: MaskAnswer) -> NDArray:
    if found is None:
        raise DataError(f"image {row}: {answer.reason}", "Leave it out, or see answers(X).")
    return found
