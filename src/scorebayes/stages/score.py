"""Scoring: writes the evidence table of a split, shard by shard, so that it streams and can be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from scorebayes.data.load import ImageSet
from scorebayes.decision.table import EvidenceTable
from scorebayes.diffusion.draws import Draws
from scorebayes.diffusion.likelihood import LIKELIHOODS, Likelihood
from scorebayes.errors import ConfigError, DataError, command
from scorebayes.progress import progress_bar
from scorebayes.runs import older
from scorebayes.runs.config import build_kind
from scorebayes.runs.run import SEALED_FROM, SETTINGS, Run
from scorebayes.runs.shards import shards
from scorebayes.storage import sealed

IMAGES_AT_A_TIME = 16  # between two steps of the progress bar


def score_split(run: Run, split: str, estimator: str = "") -> Path:
    """Write the evidence table of a split and return its path: ``evidence-<split>.parquet``.

    An existing shard is kept if it was made by the same sources and estimator; otherwise everything is scored again.
    ``estimator``: a kind other than the configured one, with its default options; the file name then contains its name.
    """
    images = run.images(split)
    likelihood = make_likelihood(run, estimator)
    with run.locked(), progress_bar(f"score {split}", len(images)) as advance:
        folder = _begun(run, split, estimator, likelihood)
        for shard in shards(len(images), folder):
            if not shard.done:
                some = images.subset(shard.rows)
                score_images(run, some, likelihood, advance, shard.start).write_part(shard.path)
            advance(shard.stop, "")
    return folder


def score_images(
    run: Run, images: ImageSet, likelihood: Likelihood, advance: Callable[[int, str], None], before: int = 0
) -> EvidenceTable:
    """The evidence table of prepared images with their labels, a few images at a time. ``advance``: of a
    ``progress_bar`` that stood at ``before``."""
    tables = []
    for first in range(0, len(images), IMAGES_AT_A_TIME):
        some = images.subset(np.arange(first, min(first + IMAGES_AT_A_TIME, len(images))))
        tables.append(score_batch(run, some, likelihood))
        advance(before + first + len(some), "")
    return EvidenceTable.concatenate(tables)


def score_batch(run: Run, images: ImageSet, likelihood: Likelihood) -> EvidenceTable:
    """The same of images all at once."""
    x = run.standardise(images.images, dequantisation(run, likelihood, images))
    return run.evidence(x, images.keys, likelihood).with_labels(images.labels, images.patients)


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
    """The part of a file name that names an estimator other than the configured one."""
    return f".{estimator}" if estimator else ""


def table_path(run: Run, split: str, estimator: str = "") -> Path:
    """Where the table is; one of run format 3 or before has another name."""
    name = f"{split}{suffix(estimator)}.parquet"
    before = run.path / f"loglik-{name}"
    return before if before.exists() else run.path / f"evidence-{name}"


def read_table(run: Run, split: str, estimator: str = "") -> EvidenceTable:
    """The table that ``score_split`` wrote. DataError if there is none, ConfigError if it is incomplete, or was made with
    other weights, sources or another estimator than the current ones of the run."""
    folder = table_path(run, split, estimator)
    option = ("--estimator", estimator) if estimator else ()
    again = command("score", run.path, "--split", split, *option)
    if not any(folder.glob("part-*.parquet")):
        raise DataError(f"{folder}: no evidence table there.", f"Run `{again}` first.")
    table = EvidenceTable.read(folder)
    if not _made_by(folder, run, make_likelihood(run, estimator)):
        raise ConfigError(
            f"{folder}: scored with other weights, sources or another estimator than the current ones of the run.",
            f"Score it again with `{again}`.",
        )
    expected = int((run.split["split"] == split).sum())
    if len(table) != expected:
        raise ConfigError(
            f"{run.path}: only {len(table)} of {expected} images of the split {split!r} are scored.",
            f"Finish it with `{again}`.",
        )
    return table.with_labels(table.labels, _patients(run, table.keys))


def _patients(run: Run, keys: Sequence[str]) -> list[str]:
    """As the run knows them, also of tables that were stored without; the image's own id where no patient is named."""
    named = run.split.set_index("image_id")["patient_id"].reindex(list(keys))
    return named.where(named.notna(), named.index.to_series()).to_list()


def _begun(run: Run, split: str, estimator: str, likelihood: Likelihood) -> Path:
    """The folder of a table, without shards made by other weights, sources or another estimator."""
    folder = table_path(run, split, estimator)
    if folder.exists():
        if _made_by(folder, run, likelihood):
            return folder
        sealed.remove(folder)
        folder = table_path(run, split, estimator)
    sealed.make_folder(folder)
    sealed.write(_note(folder), json.dumps(run.maker(likelihood)))
    return folder


def _made_by(folder: Path, run: Run, likelihood: Likelihood) -> bool:
    note = _note(folder)
    if not note.exists():
        return False
    stored = sealed.read_json(note)
    if not isinstance(stored, dict):
        raise sealed.damaged(note, "no maker")
    if "estimator" in stored:  # of run format 3 or before
        weights, asked = run.checkpoints.best()["sha256"], run.asked(likelihood)
        return older.made_by(stored, weights, repr(likelihood), asked, run.path)
    maker = run.maker(likelihood)
    if run.format < SEALED_FROM and SETTINGS not in stored:
        del maker[SETTINGS]
    return stored == maker


def _note(folder: Path) -> Path:
    """Who made the shards (``Run.maker``)."""
    return folder / "_maker.json"
