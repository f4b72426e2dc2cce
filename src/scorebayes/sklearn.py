"""The classifier with the interface of scikit-learn: ``fit``, ``predict_proba``, cross-validation, pipelines.

    model = ScoreBayesClassifier().fit(images, labels, groups=patients)
    model.predict_proba(new_images)
    model.answers(new_images)       # with standard errors, and without an answer for what is unlike the training images

Images are arrays [N, H, W] or [N, H, W, 3] of uint8, uint16, or floating-point numbers in [0, 1]. The classifier works on
an ordinary run directory: ``model.run_``.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from scorebayes.classifier import open_run
from scorebayes.data.pixels.images import is_stack, to_unit
from scorebayes.data.sources.arrays import save_arrays
from scorebayes.decision.posterior import bayes
from scorebayes.decision.table import EvidenceTable
from scorebayes.errors import ConfigError
from scorebayes.progress import progress_bar, progress_shown
from scorebayes.runs.config import checked_seed
from scorebayes.runs.device import pick_device
from scorebayes.runs.run import key_of
from scorebayes.stages import train as stages
from scorebayes.stages.score import IMAGES_AT_A_TIME
from scorebayes.tasks import task_of
from scorebayes.tasks.classify import YES_OR_NO


class ScoreBayesClassifier(ClassifierMixin, BaseEstimator):
    """Bayes' rule on class-conditional scores, learned and calibrated on the images of ``fit``.

    Parameters
    ----------
    preset: "tiny", "light", "small" or "paper". steps: training steps; None: chosen by the number of images.
    validation: share of the patients held out from training, for calibration and for choosing the weights.
    config: further sections of the configuration, for example ``{"train": {"lr": 1e-3}}``.
    path: the run directory. It must be new, or started with the same images and parameters, and is then resumed. The
        images are kept next to it. None: a temporary one that lives as long as the classifier and is part of its pickle.
    device: "auto", "cpu", "cuda" or "mps".
    random_state: seed of everything.
    verbose: 0 is silent, 1 tells on standard error how far the work is.

    Attributes
    ----------
    classes_: labels [Y], sorted. run_: the trained run, for everything else that ``scorebayes`` can do.
    """

    _folder: tempfile.TemporaryDirectory[str] | None

    def __init__(
        self,
        preset: str = "small",
        *,
        steps: int | None = None,
        validation: float = 0.2,
        config: Mapping[str, Mapping[str, Any]] | None = None,
        path: str | Path | None = None,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = 0,
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

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> ScoreBayesClassifier:
        """Train and calibrate. X: images; y [N]: labels of any type; groups [N]: patients, whom no split divides
        (cross-validation hands them on where metadata routing is enabled and ``set_fit_request(groups=True)`` was called).

        Raises DataError for unusable images or classes that are too small, ConfigError for parameters that do not fit.
        """
        images = _images(X)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(np.asarray(y), return_inverse=True)
        if numbers.shape != (len(images),):
            raise ConfigError(
                f"y has shape {numbers.shape} for {len(images)} images.", "Give one label per image."
            )
        if len(self.classes_) < 2:
            raise ConfigError(
                f"y has only one class, {self.classes_[0]}.", "Give images of two or more classes."
            )
        random = self.random_state
        given = isinstance(random, (int, np.integer))
        seed = checked_seed(random if given else int(check_random_state(random).randint(2**31)))
        if self.path is None:
            self._folder = tempfile.TemporaryDirectory(prefix="scorebayes-")
            path = Path(self._folder.name) / "run"
        else:
            self._folder, path = None, Path(self.path)
            path.parent.mkdir(parents=True, exist_ok=True)
        data = _kept(path, images, numbers, [str(name) for name in self.classes_], groups)
        layer = {
            "seed": seed,
            "data": {"fractions": [1 - self.validation, self.validation, 0.0]},
            "train": {} if self.steps is None else {"steps": self.steps},
        }
        with progress_shown(self.verbose > 0):
            stages.train(
                path, f"arrays:{data.resolve()}", [layer, self.config or {}], self.preset, pick_device(self.device),
                resume=path.exists(),
            )  # fmt: skip
        self.run_ = open_run(path, self.device)
        return self

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """log p(y | x) [N, Y], in the order of ``classes_``."""
        table, _ = self._ask(X)
        return bayes(table, self.run_.log_prior, self.run_.calibration).log_prob

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """p(y | x) [N, Y], in the order of ``classes_``."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: ArrayLike) -> NDArray:
        """The most probable label [N]."""
        chosen = self.predict_log_proba(X).argmax(axis=1)
        return self.classes_[chosen]

    def answers(self, X: ArrayLike) -> pd.DataFrame:
        """One row per image as ``scorebayes predict`` writes it: posterior, log-odds with their Monte-Carlo standard error,
        whether the error leaves a decision, and no posterior where the image is unlike the training images. What is "yes" or
        "no" there is True or False, missing where there is no answer."""
        table, x = self._ask(X)
        run = self.run_
        task = task_of(run)
        found = task.answers(run, table, run.decision, pixels=run.restore(x)).drop(columns="image_id")
        found = task.abstain(found, run.decision)
        truths = {name: found[name].map({"yes": True, "no": False}).astype("boolean") for name in YES_OR_NO}
        return found.assign(**truths)

    def _ask(self, X: ArrayLike) -> tuple[EvidenceTable, torch.Tensor]:
        """The evidence table of images, and these as the network takes them [N, C, S, S]."""
        check_is_fitted(self, "run_")
        run, images = self.run_, _images(X)
        x = torch.cat([run.prepare(to_unit(image, f"image {row}")) for row, image in enumerate(images)])
        tables = []
        with progress_shown(self.verbose > 0), progress_bar("score", len(x)) as advance:
            for some in x.split(IMAGES_AT_A_TIME):
                tables.append(run.evidence(some, [key_of(one) for one in some.split(1)]))
                advance(IMAGES_AT_A_TIME * len(tables), "")
        return EvidenceTable.concatenate(tables), x

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """A temporary run is pickled as well; one with a path is opened there again."""
        state = dict(super().__getstate__())
        folder, run = state.pop("_folder", None), state.pop("run_", None)
        if run is not None:
            state["_packed"] = None if folder is None else _pack(Path(folder.name))
            state["_run_path"] = str(run.path)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed, path = state.pop("_packed", None), state.pop("_run_path", None)
        super().__setstate__(state)
        if path is None:
            return
        self._folder = None
        if packed is not None:
            self._folder = tempfile.TemporaryDirectory(prefix="scorebayes-")
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                archive.extractall(self._folder.name)
            path = Path(self._folder.name) / Path(path).name
        self.run_ = open_run(path, self.device)


def _images(X: ArrayLike) -> NDArray:
    images = np.asarray(X)
    if not is_stack(images) or not images.size:
        raise ConfigError(f"X has shape {images.shape}.", "Expected images, (N, H, W) or (N, H, W, 3).")
    if images.dtype.kind == "f":
        return to_unit(images, "X")
    to_unit(images[:1], "X")  # says what is wrong with other types
    return images


def _kept(
    run: Path, images: NDArray, labels: NDArray[np.int64], classes: list[str], groups: ArrayLike | None
) -> Path:
    """The images in a file next to the run, named by its content: other images get another file."""
    parts = [images, labels, *([] if groups is None else [np.asarray(groups).astype(str)])]
    content = hashlib.blake2b(repr(classes).encode(), digest_size=8)
    for part in parts:
        content.update(f"{part.shape} {part.dtype}".encode() + np.ascontiguousarray(part).tobytes())
    path = run.with_name(f"{run.name}-{content.hexdigest()}.npz")
    if not path.exists():
        save_arrays(path, images, labels, classes=classes, patients=groups)
    return path


def _pack(folder: Path) -> bytes:
    """All of a run but its cache and what only further training would need."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            left_out = "cache" in name.parts or name.suffix == ".npz" or name.name.startswith("state-")
            if path.is_file() and not left_out:
                archive.write(path, name)
    return packed.getvalue()
