"""Scoring: the log-likelihood table of a split, written part by part, so that it streams and resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from scorebayes.data.load import ImageSet
from scorebayes.decision.table import LogLikTable
from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood import LIKELIHOODS, Likelihood
from scorebayes.errors import ConfigError
from scorebayes.progress import progress_bar
from scorebayes.runs.config import build_kind
from scorebayes.runs.inputs import load_split
from scorebayes.runs.run import Run
from scorebayes.storage.atomic import write_atomically

IMAGES_PER_PART = 256  # what a killed process can lose
IMAGES_AT_A_TIME = 16  # between two steps of the progress bar


def score_split(run: Run, split: str, estimator: str = "") -> Path:
    """Write the log-likelihood table of a split and return its path: ``loglik-<split>.parquet``.

    A part that is there already is kept, if it was made by the same weights and estimator; otherwise all is done anew.
    ``estimator``: a kind other than the configured one, with its default options; its name then enters the file name.
    """
    images = load_split(run, split)
    likelihood = make_likelihood(run, estimator)
    folder = table_path(run, split, estimator)
    _require_same_maker(folder, run.maker(likelihood))
    with progress_bar(f"score {split}", len(images)) as advance:
        for part, start in enumerate(range(0, len(images), IMAGES_PER_PART)):
            stop = min(start + IMAGES_PER_PART, len(images))
            if not (folder / f"part-{part:06d}.parquet").exists():
                some = images.subset(np.arange(start, stop))
                score_images(run, some, likelihood, advance, start).write_part(folder, part)
            advance(stop, "")
    return folder


def score_images(
    run: Run, images: ImageSet, likelihood: Likelihood, advance: Callable[[int, str], None], before: int = 0
) -> LogLikTable:
    """The log-likelihood table of prepared images with their labels, a few images at a time. ``advance``: of a
    ``progress_bar`` that stood at ``before``."""
    tables = []
    for first in range(0, len(images), IMAGES_AT_A_TIME):
        some = images.subset(np.arange(first, min(first + IMAGES_AT_A_TIME, len(images))))
        tables.append(score_batch(run, some, likelihood))
        advance(before + first + len(some), "")
    return LogLikTable.concatenate(tables)


def score_batch(run: Run, images: ImageSet, likelihood: Likelihood) -> LogLikTable:
    """The same of images all at once."""
    x = run.standardise(images.images, dequantisation(run, likelihood, images))
    return run.log_lik(x, images.keys, likelihood).with_labels(images.labels)


def dequantisation(run: Run, likelihood: Likelihood, images: ImageSet) -> Tensor | float:
    """Uniform noise, keyed by the image, for what claims to be a density; the middle of the grey level for a decision."""
    if likelihood.kind == "class-score":
        return 0.5
    return Draws(run.config.seed, images.keys).uniform("dequantisation", images.images.shape[1:])


def make_likelihood(run: Run, estimator: str = "") -> Likelihood:
    """The configured estimator, or a named kind with its default options. ConfigError for an unknown one."""
    if not estimator:
        return run.likelihood
    return build_kind("likelihood", estimator, LIKELIHOODS, {})


def suffix(estimator: str) -> str:
    """What the files of an estimator other than the configured one have in their names."""
    return f".{estimator}" if estimator else ""


def table_path(run: Run, split: str, estimator: str = "") -> Path:
    return run.path / f"loglik-{split}{suffix(estimator)}.parquet"


def read_table(run: Run, split: str, estimator: str = "") -> LogLikTable:
    """The table that ``score_split`` wrote. DataError if there is none, ConfigError if it is not finished, or was made by
    other weights or another estimator than the run has now."""
    folder = table_path(run, split, estimator)
    table = LogLikTable.read(folder)
    option = f" --estimator {estimator}" if estimator else ""
    command = f"scorebayes score {run.path} --split {split}{option}"
    if not _made_by(folder, run.maker(make_likelihood(run, estimator))):
        raise ConfigError(
            f"{folder}: scored by other weights or another estimator than the run has now.",
            f"Score it again with '{command}'.",
        )
    expected = int((run.split["split"] == split).sum())
    if len(table) != expected:
        raise ConfigError(
            f"{run.path}: {len(table)} of {expected} images of the split {split!r} are scored.",
            f"Finish with '{command}'.",
        )
    return table


def _require_same_maker(folder: Path, maker: dict[str, str]) -> None:
    """Empty the folder if its parts were made by other weights or another estimator."""
    if folder.exists() and not _made_by(folder, maker):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(_note(folder), json.dumps(maker))


def _made_by(folder: Path, maker: dict[str, str]) -> bool:
    note = _note(folder)
    return note.exists() and json.loads(note.read_text()) == maker


def _note(folder: Path) -> Path:
    """Who made the parts (``Run.maker``)."""
    return folder / "_maker.json"
