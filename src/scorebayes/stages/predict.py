"""Prediction: image files to a table of posteriors, with abstention in words where there is none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from scorebayes.baselines import open_baseline
from scorebayes.data import read_image, read_tags
from scorebayes.data.pixels.files import files_below
from scorebayes.data.pixels.images import may_be_image
from scorebayes.decision.posterior import mean_posterior
from scorebayes.decision.table import LogLikTable
from scorebayes.decision.typicality import Typicality
from scorebayes.errors import ConfigError, DataError
from scorebayes.progress import progress_bar
from scorebayes.runs.config import PriorConfig
from scorebayes.runs.run import Run
from scorebayes.stages.evaluate import predictions

LEAST_SHARE = 0.5  # of the model's side: an image enlarged more than twofold shows too little to judge
EVIDENCE = ("predicted", "prob_", "raw_prob_", "log_odds", "above_threshold", "decided")


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
            f"prior {text!r}: expected 'train', 'uniform', or numbers.",
            f"Such as 0.01 for the prevalence of {classes[positive]}.",
        ) from error
    if len(prob) == 1 and len(classes) == 2:
        prob.insert(1 - positive, 1 - prob[0])
    return run.log_prior_of(PriorConfig(kind="given", prob=tuple(prob)))


def read_file(run: Run, path: Path) -> tuple[Tensor, str, str]:
    """A file as the run takes it: standardised image [1, C, S, S], the key of its draws (its prepared pixels), and what is
    unusual about it, if anything. DataError where it cannot be read or prepared."""
    image = read_image(path, run.facts.info.modalities)
    warning = _size_warning(path, image, run.config.prepare.size)
    x = run.prepare(image, *read_tags(path))
    return x, key_of(x), warning


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Files as they are given; in place of a folder, the files below it that by their names may be images, if there are any.
    DataError where a folder cannot be opened."""
    found = []
    for path in paths:
        below = list(filter(may_be_image, files_below(path))) if path.is_dir() else []
        found += below or [path]
    return found


def key_of(x: Tensor) -> str:
    """The key of the draws of a standardised image: the same for the same pixels, under any name."""
    return hashlib.blake2b(x.numpy().tobytes(), digest_size=16).hexdigest()


def predict_files(
    run: Run,
    files: Sequence[Path],
    *,
    force: bool = False,
    log_prior: NDArray | None = None,
    partners: Sequence[str] = (),
) -> pd.DataFrame:
    """One row per file, in the order given, those of a folder by name: class, posterior, log-odds with standard error, or
    the reason for none.

    Random draws are keyed by the prepared pixels: the same image gets the same answer under any name, and whatever else
    is in ``files``. ``log_prior`` [Y]: the prior where the files come from, if it is not the run's. Posteriors follow it;
    ``above_threshold`` does not change, since the frozen threshold moves with it. ``partners``: fitted baselines; columns
    ``prob_with_<partner>+<partner>_<class>`` then hold the mean log-posterior of all, which is not purely generative.
    Column ``status``:

    "ok"
        there is a posterior; ``warning`` says what is unusual about the file, if anything.
    "quarantined: ..."
        the file cannot be read or prepared.
    "abstained: ..."
        the estimator failed on this image, or the image is unlike the training data (see ``scorebayes.decision.typicality``); with
        ``force`` the posterior of unlike images is given all the same.
    """
    files = image_files(files)
    beside = [open_baseline(run, name) for name in partners]
    tables: list[LogLikTable] = []
    shown: list[Tensor] = []
    asked: list[NDArray] = []  # the partners' logits, [M, 1, Y] an image
    reasons: dict[int, str] = {}
    warnings = [""] * len(files)
    with progress_bar("predict", len(files)) as advance:
        for row, path in enumerate(files):
            try:
                x, key, warnings[row] = read_file(run, path)
            except DataError as error:
                reasons[row] = str(error)
            else:
                tables.append(run.log_lik(x, [key]))
                shown.append(x)
                if beside:
                    with torch.no_grad():
                        asked.append(np.stack([b.logits(x).cpu().double().numpy() for b in beside]))
            advance(row + 1, "")
    frame = pd.DataFrame({"file": [str(path) for path in files], "warning": warnings})
    if tables:
        table = LogLikTable.concatenate(tables)
        pixels = run.restore(torch.cat(shown))
        found = predictions(run, table, run.decision, log_prior, pixels=pixels).drop(columns="image_id")
        if beside:
            found = _together(found, run, partners, np.concatenate(asked, axis=1), log_prior)
        found = abstain(found, run.decision.typicality, force)
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


def abstain(frame: pd.DataFrame, judge: Typicality | None, force: bool = False) -> pd.DataFrame:
    """No posterior where the estimator failed or, unless forced, the image is unlike the training data: changes
    ``predictions`` in place."""
    evidence = [name for name in frame if name.startswith(EVIDENCE)]
    for row in frame.index:
        status, distance = frame.loc[row, "status"], frame.loc[row, "typicality"]
        if status != "ok":
            frame.loc[row, "status"] = f"abstained: the estimator failed ({status})"
        elif judge is not None and not judge.is_typical(distance) and not force:
            reason = f"distance {distance:.2f} from the training images, limit {judge.threshold:.2f}"
            frame.loc[row, "status"] = f"abstained: atypical ({reason})"
            frame.loc[row, evidence] = np.nan
    return frame


def _size_warning(path: Path, image: NDArray, side: int) -> str:
    """What to say of an image smaller than the model's; DataError if it is far too small."""
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest >= side:
        return ""
    size = f"{width} x {height} pixels, the model works at {side}"
    if longest < LEAST_SHARE * side:
        raise DataError(f"{path} is too small: {size}.", "Give the original at full size.")
    return f"small: {size}; it was enlarged"
