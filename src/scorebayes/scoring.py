"""Scoring: the log-likelihood table of a split, written part by part, so that it streams and resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from scorebayes.checkpoint import write_atomically
from scorebayes.errors import ConfigError
from scorebayes.inputs import load_split
from scorebayes.likelihood import Likelihood
from scorebayes.progress import progress_bar
from scorebayes.run import Run
from scorebayes.table import LogLikTable

IMAGES_PER_PART = 256


def score_split(run: Run, split: str, likelihood: Likelihood | None = None, name: str = "") -> Path:
    """Write ``loglik-<split>.parquet`` and return its path.

    A part that is there already is kept, if it was made by the same weights and estimator; otherwise all is done anew.
    ``likelihood`` and ``name``: another estimator than the configured one, and what to add to the file name for it.
    """
    images = load_split(run, split)
    estimator = likelihood or run.likelihood
    folder = run.path / f"loglik-{split}{name and '.' + name}.parquet"
    _require_same_maker(folder, {"weights": run.checkpoints.best()["sha256"], "estimator": repr(estimator)})
    # The smallest parts are a batch of the estimator; a killed process loses at most one part.
    starts = range(0, len(images), IMAGES_PER_PART)
    with progress_bar(f"score {split}", len(images)) as advance:
        for part, start in enumerate(starts):
            stop = min(start + IMAGES_PER_PART, len(images))
            if not (folder / f"part-{part:06d}.parquet").exists():
                some = images.subset(np.arange(start, stop))
                tables = []
                for row in range(len(some)):
                    one = some.subset([row])
                    tables.append(
                        run.log_lik(run.standardise(one.images), one.keys, estimator).with_labels(one.labels)
                    )
                    advance(start + row + 1, "")
                LogLikTable.concatenate(tables).write_part(folder, part)
            advance(stop, "")
    return folder


def read_table(run: Run, split: str, name: str = "") -> LogLikTable:
    """The table that ``score_split`` wrote. DataError if there is none."""
    table = LogLikTable.read(run.path / f"loglik-{split}{name and '.' + name}.parquet")
    expected = int((run.split["split"] == split).sum())
    if len(table) != expected:
        raise ConfigError(
            f"{run.path}: {len(table)} of {expected} images of the split {split!r} are scored.",
            f"Finish with 'scorebayes score {run.path} --split {split}'.",
        )
    return table


def _require_same_maker(folder: Path, maker: dict[str, str]) -> None:
    """Empty the folder if its parts were made by other weights or another estimator."""
    note = folder / "_maker.json"
    if folder.exists() and not (note.exists() and json.loads(note.read_text()) == maker):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(note, json.dumps(maker))
