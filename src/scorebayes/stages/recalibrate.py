"""Recalibration: adapt a trained run to another site with some labelled images from there.

Calibration and threshold hold for images like those they were fitted on. After a shift (``scorebayes.decision.shift``) the
ranking of the images may still be good, and only a few numbers have to change: the weight of the evidence, the balance of
the classes, the prior, and the threshold. They are fitted on labelled images from the new site, and so is what is typical:
images that are usual there must not be declined as unusual elsewhere. The network, and the shares of the noise levels and of
the sources, do not change."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorebayes.baselines.base import fit_temperature
from scorebayes.decision.calibration import Calibration
from scorebayes.decision.folds import labelled_folds
from scorebayes.decision.posterior import bayes
from scorebayes.decision.table import OK, EvidenceTable
from scorebayes.decision.typicality import Typicality, typicality_of_place
from scorebayes.errors import ConfigError, DataError
from scorebayes.metrics import choose_threshold, classification_metrics
from scorebayes.progress import progress_bar
from scorebayes.runs.run import Run, open_run, reconfigured
from scorebayes.stages.calibrate import write_decision
from scorebayes.stages.score import score_images
from scorebayes.storage import sealed
from scorebayes.storage.atomic import sync_folder
from scorebayes.storage.lock import HELD, LOCK
from scorebayes.tasks.classify import THRESHOLD_RULE

LEAST_PATIENTS = 5  # of every class
FOLDS = 5
LEFT_OUT = (
    "cache", "baselines", "loglik-*", "evidence-*", "evidence.npz", "explained", "samples.*", "predictions-*",
    "metrics-*", "calibration*", "report*", "model-card.md", "thumbnails.npz", "state-*", LOCK, HELD, sealed.SEAL,
    "*.partial",
)  # fmt: skip
"""Files of a run that are not copied: they belong to the old site, or can be made again."""


@dataclass(frozen=True)
class Recalibrated:
    """The new run; how the labelled images are judged by the old one (``before``) and, those of every fifth patient by a
    recalibration on the others, by the new one (``after``): metrics, and the share ``declined`` as atypical (None where
    typicality is not judged)."""

    run: Run
    before: dict[str, Any]
    after: dict[str, Any]


def recalibrate(run: Run, data: str, out: Path, log_prior: NDArray | None = None) -> Recalibrated:
    """Write a run directory with the weights of another run and a decision refitted on labelled images.

    Parameters
    ----------
    data: KIND[:PATH] with the classes of the run; 50 images help a lot, 100 are better.
    out: the new directory. log_prior: [Y], at the new site; by default the class shares of these images.

    Raises ConfigError if the directory already exists or the classes differ, DataError if a class has fewer than five
    patients.
    """
    if os.path.lexists(out):
        raise ConfigError(f"{out}: the directory already exists.", "Choose a new directory.")
    sealed.require_free(out)
    beside = _folder_beside(out)
    begun = beside / out.name
    try:
        begun.mkdir()
        _copy(run, begun)
        found = _recalibrate(run, open_run(begun, str(run.device)), data, log_prior)
        (begun / LOCK).unlink(missing_ok=True)
        begun.rename(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(beside)
    return replace(found, run=open_run(out, str(run.device)))


def _folder_beside(out: Path) -> Path:
    """A new folder of ours, whatever else lies there; a killed process leaves it behind. ConfigError if there can be
    none."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise ConfigError(
            f"{out}: the new run cannot be written ({error.strerror}).", "Choose another directory."
        ) from error


def _copy(run: Run, to: Path) -> None:
    """The files of a run that hold for every site, as they were sealed. ConfigError for links, and for changed files."""
    sealed.begin(to)
    for name in sealed.names_below(run.path):
        if any(fnmatch(part, pattern) for part in Path(name).parts for pattern in LEFT_OUT):
            continue
        source, copy = run.path / name, to / name
        if sealed.belongs(name) and sealed.is_sealed(run.path) and not sealed.is_listed(source):
            continue  # an output that somebody put there
        copy.parent.mkdir(parents=True, exist_ok=True)
        if sealed.belongs(name):
            sealed.write(copy, sealed.read(source))
        else:
            sealed.require_inside(source)
            shutil.copyfile(source, copy)


def _recalibrate(run: Run, begun: Run, data: str, log_prior: NDArray | None) -> Recalibrated:
    images = begun.reader.labelled(data)
    patients = np.array(images.patients)
    for y, name in enumerate(run.facts.classes):
        n = len(set(patients[images.labels == y]))
        if n < LEAST_PATIENTS:
            raise DataError(
                f"{data}: only {n} patients (or images, where no patient is named) of class {name!r}.",
                f"Give at least {LEAST_PATIENTS} of every class.",
            )
    with progress_bar("score", len(images)) as advance:
        table = score_images(run, images, run.likelihood, advance)
    pixels = run.pixels(images)[table.status == OK]
    table = table.usable()
    numbers = np.unique(table.patients, return_inverse=True)[1]
    labels, decision, positive = table.labels, run.decision, run.facts.info.positive
    if log_prior is None:
        log_prior = table.log_shares
    calibration = _fit(run, table)
    prob = bayes(table, log_prior, calibration).prob
    after, declined = np.empty_like(prob), np.zeros((2, len(prob)))
    seed, known = run.config.seed, decision.typicality
    for others, part in labelled_folds(labels, numbers, FOLDS, seed):
        after[part] = bayes(table.rows(part), log_prior, _fit(run, table.rows(others))).prob
        judge = typicality_of_place(known, table.rows(others), pixels[others], seed)
        declined[:, part] = [_declined(one, table.rows(part), pixels[part]) for one in (known, judge)]
    threshold = choose_threshold(labels, prob, THRESHOLD_RULE, positive=positive)
    typicality = typicality_of_place(known, table, pixels, seed)
    new = replace(
        decision, calibration=calibration, threshold=threshold, log_prior=log_prior, typicality=typicality
    )
    write_decision(begun, new, f"{len(labels)} images of {data}")
    reconfigured(begun, begun.config.changed("prior", kind="given", prob=np.exp(log_prior).tolist()))
    before = bayes(table, run.log_prior, decision.calibration).prob
    judged = [
        {
            **classification_metrics(labels, p, positive=positive, groups=table.patients),
            "declined": None if known is None else float(of.mean()),
        }
        for p, of in zip((before, after), declined, strict=True)
    ]
    return Recalibrated(begun, *judged)


def _declined(judge: Typicality | None, table: EvidenceTable, pixels: NDArray) -> NDArray[np.bool_]:
    if judge is None:
        return np.zeros(len(table), dtype=bool)
    return ~judge.is_typical(judge.distance(table, pixels))


def _fit(run: Run, table: EvidenceTable) -> Calibration:
    """The run's calibration, scaled and shifted for the images of a table."""
    evidence = run.calibration.logits(table)
    none = np.zeros(evidence.shape[1])  # what the evidence contains of a prior
    found = fit_temperature(evidence, none, table.labels, table.patients, run.config.seed)
    return run.calibration.rescaled(found.weight, found.bias, found.log_loss, len(table))
