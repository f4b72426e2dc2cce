"""Prediction: from image files to a table of posteriors, with a reason where the model abstains."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from scorebayes.baselines import open_baseline
from scorebayes.data.listing import left_out_words, list_images
from scorebayes.decision.posterior import mean_posterior
from scorebayes.decision.table import EvidenceTable
from scorebayes.errors import ConfigError, DataError
from scorebayes.progress import progress_bar
from scorebayes.runs.config import PriorConfig
from scorebayes.runs.run import Run
from scorebayes.tasks import task_of


def read_prior(text: str, run: Run) -> NDArray[np.float64]:
    """log p(y) [Y] from what a user types. ConfigError for anything else.

    "train" (class shares of the training split), "uniform", the prevalence of the positive class of two ("0.01"), or one
    probability for each class in the run's order ("0.2,0.3,0.5").
    """
    classes, positive = run.facts.classes, run.facts.info.positive
    named = {"train": PriorConfig("train"), "uniform": PriorConfig("uniform")}
    if text in named:
        return run.log_prior_of(named[text])
    try:
        prob = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"prior {text!r}: expected 'train', 'uniform' or numbers.",
            f"For example, 0.01 is the prevalence of {classes[positive]}.",
        ) from error
    if len(prob) == 1 and len(classes) == 2:
        prob.insert(1 - positive, 1 - prob[0])
    return run.log_prior_of(PriorConfig(kind="given", prob=tuple(prob)))


def require_there(paths: Sequence[Path]) -> None:
    """DataError naming the paths that do not exist: a mistyped name is no image that failed."""
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise DataError(
            f"there is no file or folder named {', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}.",
            "Check the spelling; nothing was written.",
        )


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The given files. A folder is replaced by the images below it, if there are any, whatever their names; a warning
    counts what is left out. DataError if a folder cannot be opened."""
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        listing = list_images(path)
        found += listing.images or [path]
        if words := left_out_words(listing.left_out, path):
            python_warnings.warn(f"{path}: {words}", stacklevel=2)
    return found


def _require_within(path: Path, folders: Sequence[Path]) -> None:
    """DataError for a link in one of the folders that leads out of it; a link that is named itself is meant."""
    if not path.is_symlink():
        return
    for folder in folders:
        if folder in path.parents and not path.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{path} is a link that leads out of {folder}.", "Name the file itself.")


def predict_files(
    run: Run,
    files: Sequence[Path],
    *,
    force: bool = False,
    log_prior: NDArray | None = None,
    partners: Sequence[str] = (),
) -> pd.DataFrame:
    """One row per file, in the given order, files of a folder by name: class, posterior, log-odds with standard error, or
    the reason why there is none.

    Random draws are keyed by the prepared pixels: the same image gets the same answer under any name and with any other
    ``files``. ``log_prior`` [Y]: the prior at the site of the files, if it is not the run's. Posteriors follow it;
    ``above_threshold`` does not change, since the frozen threshold moves with it. ``partners``: fitted baselines; columns
    ``prob_with_<partner>+<partner>_<class>`` then hold the mean log-posterior of all, which is not purely generative.
    Column ``status``:

    "ok"
        there is a posterior; ``warning`` names anything unusual about the file.
    "quarantined: ..."
        the file cannot be read or prepared.
    "abstained: ..."
        the estimator failed on this image, or the image is unlike the training data (see
        ``scorebayes.decision.typicality``); with ``force`` atypical images get a posterior anyway.
    """
    require_there(files)
    folders, files, task = [path for path in files if path.is_dir()], image_files(files), task_of(run)
    beside = [open_baseline(run, name) for name in partners]
    tables: list[EvidenceTable] = []
    shown: list[Tensor] = []
    asked: list[NDArray] = []  # the partners' logits, [M, 1, Y] an image
    reasons: dict[int, str] = {}
    warnings = [""] * len(files)
    with progress_bar("predict", len(files)) as advance:
        for row, path in enumerate(files):
            try:
                _require_within(path, folders)
                x, key, warnings[row] = run.read(path)
            except DataError as error:
                reasons[row] = str(error)
            else:
                tables.append(run.evidence(x, [key]))
                shown.append(x)
                if beside:
                    with torch.no_grad():
                        asked.append(np.stack([b.logits(x).cpu().double().numpy() for b in beside]))
            advance(row + 1, "")
    frame = pd.DataFrame({"file": [str(path) for path in files], "warning": warnings})
    if tables:
        table = EvidenceTable.concatenate(tables)
        pixels = run.restore(torch.cat(shown))
        found = task.answers(run, table, run.decision, log_prior, pixels=pixels).drop(columns="image_id")
        if beside:
            found = _together(found, run, partners, np.concatenate(asked, axis=1), log_prior)
        found = task.abstain(found, run.decision, force)
        rows = np.setdiff1d(np.arange(len(files)), list(reasons))
        frame = frame.join(found.set_index(pd.Index(rows)))
    for row, reason in reasons.items():
        frame.loc[row, "status"] = f"quarantined: {reason}"
    return frame


def _together(
    frame: pd.DataFrame, run: Run, partners: Sequence[str], logits: NDArray, log_prior: NDArray | None
) -> pd.DataFrame:
    """Columns for the mean log-posterior with baselines, whose logits [M, N, Y] contain the run's prior."""
    classes = run.facts.classes
    if log_prior is not None:
        logits = logits - run.log_prior + log_prior
    own = frame[[f"prob_{name}" for name in classes]].to_numpy(np.float64)
    both = mean_posterior([own, *softmax(logits, axis=2)])
    names = "+".join(partners)
    return frame.assign(**{f"prob_with_{names}_{c}": both[:, y] for y, c in enumerate(classes)})
