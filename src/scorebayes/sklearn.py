"""The classifier with the interface of scikit-learn: ``fit``, ``predict_proba``, cross-validation, pipelines.

    model = ScoreBayesClassifier().fit(images, labels, groups=patients)
    model.predict_proba(new_images)
    model.answers(new_images)       # with standard errors, and without an answer for what is unlike the training images

Images are arrays [N, H, W] or [N, H, W, 3] of uint8, uint16, or floating-point numbers in [0, 1]; also [N, 1, H, W],
[N, 3, H, W] and [N, H, W, 1], and for an answer a single image. Other whole numbers, such as int64, are of 8 bits where none
of the training images is above 255, else of 16. The classifier works on an ordinary run directory: ``model.run_``.
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
from scorebayes.data.names import known_patients
from scorebayes.data.pixels.numbers import as_stack, to_unit, unsigned
from scorebayes.data.sources.arrays import save_arrays
from scorebayes.decision.posterior import bayes
from scorebayes.decision.table import EvidenceTable
from scorebayes.errors import ConfigError, DataError
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
    _depth: int | None = None  # bits of the training images; None for floating-point numbers

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
        (cross-validation hands them on where metadata routing is enabled and ``set_fit_request(groups=True)`` was called);
        None, NaN and empty names are unknown, and such an image stands alone.

        Raises DataError for unusable images or classes that are too small, ConfigError for parameters that do not fit.
        """
        _refuse(_not_images(X))
        images = _training_images(X)
        self._depth = None if images.dtype.kind == "f" else 8 * images.dtype.itemsize
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
        """log p(y | x) [N, Y], in the order of ``classes_``. DataError naming the rows that are no usable images: for the
        others alone, see ``answers``."""
        tables, _, unusable = self._ask(X)
        _refuse(unusable)
        return bayes(EvidenceTable.concatenate(tables), self.run_.log_prior, self.run_.calibration).log_prob

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
        tables, x, unusable = self._ask(X)
        run, task, n = self.run_, task_of(self.run_), len(x) + len(unusable)
        frame = pd.DataFrame(index=range(n), columns=["status", *YES_OR_NO], dtype=object)
        if tables:
            table = EvidenceTable.concatenate(tables)
            found = task.answers(run, table, run.decision, pixels=run.restore(x)).drop(columns="image_id")
            rows = [row for row in range(n) if row not in unusable]
            frame = task.abstain(found, run.decision).set_index(pd.Index(rows)).reindex(range(n))
        for row, reason in unusable.items():
            frame.loc[row, "status"] = f"quarantined: {reason}"
        truths = {name: frame[name].map({"yes": True, "no": False}).astype("boolean") for name in YES_OR_NO}
        return frame.assign(**truths)

    def _ask(self, X: ArrayLike) -> tuple[list[EvidenceTable], torch.Tensor, dict[int, str]]:
        """The evidence of the usable images in parts, these as the network takes them [N, C, S, S], and the rows of the
        others with the reason."""
        check_is_fitted(self, "run_")
        run, images = self.run_, _stack(X, or_one=True)
        if self._depth is not None:
            images = unsigned(images, "X", self._depth)
        prepared, unusable = [], {}
        for row, image in enumerate(images):
            try:
                prepared.append(run.prepare(to_unit(image, f"image {row}")))
            except DataError as error:
                unusable[row] = str(error)
        channels, *side = run.image_shape
        x = torch.cat([torch.empty(0, channels, *side), *prepared])
        tables: list[EvidenceTable] = []
        with progress_shown(self.verbose > 0), progress_bar("score", len(x)) as advance:
            for some in x.split(IMAGES_AT_A_TIME) if len(x) else ():
                tables.append(run.evidence(some, [key_of(one) for one in some.split(1)]))
                advance(IMAGES_AT_A_TIME * len(tables), "")
        return tables, x, unusable

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


def _stack(X: ArrayLike, *, or_one: bool = False) -> NDArray:
    """[N, H, W] or [N, H, W, 3]."""
    try:
        images = np.asarray(X)
    except ValueError:
        raise DataError("X holds images of different sizes.", "Bring them to one size.") from None
    return as_stack(images, "X", or_one=or_one)


def _training_images(X: ArrayLike) -> NDArray:
    """[N, H, W] or [N, H, W, 3], of a type that tells the depth."""
    images = unsigned(_stack(X), "X")
    checked = to_unit(images if images.dtype.kind == "f" else images[:1], "X")
    return checked if images.dtype.kind == "f" else images


def _not_images(X: ArrayLike) -> dict[int, str]:
    """The rows of floating-point images with NaN or out of range, and why; none where all are so, since then X is wrong as a
    whole."""
    try:
        images = np.asarray(X)
    except ValueError:  # of different sizes: told where the stack is made
        return {}
    found: dict[int, str] = {}
    for row, image in enumerate(images) if images.dtype.kind == "f" and images.ndim > 2 else ():
        try:
            to_unit(image, f"image {row}")
        except DataError as error:
            found[row] = str(error)
    return found if len(found) < len(images) else {}


def _refuse(unusable: Mapping[int, str]) -> None:
    """DataError that names all rows."""
    if unusable:
        raise DataError(
            f"{len(unusable)} of the images cannot be used, rows {', '.join(map(str, sorted(unusable)))}: "
            f"{unusable[min(unusable)]}",
            "Leave these rows out; answers() gives the others their answers.",
        )


def _kept(
    run: Path, images: NDArray, labels: NDArray[np.int64], classes: list[str], groups: ArrayLike | None
) -> Path:
    """The images in a file next to the run, named by its content: other images get another file."""
    named = None if groups is None else known_patients(np.asarray(groups).ravel().tolist())
    patients = None if named is None else np.array([name or "" for name in named])
    parts = [images, labels, *([] if patients is None else [patients])]
    content = hashlib.blake2b(repr(classes).encode(), digest_size=8)
    for part in parts:
        content.update(f"{part.shape} {part.dtype}".encode() + np.ascontiguousarray(part).tobytes())
    path = run.with_name(f"{run.name}-{content.hexdigest()}.npz")
    if not path.exists():
        save_arrays(path, images, labels, classes=classes, patients=patients)
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
