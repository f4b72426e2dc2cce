"""Training: from a data source to a trained and calibrated run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scorebayes.errors import ConfigError
from scorebayes.evidence.base import TrainingImages
from scorebayes.runs.config import resolve
from scorebayes.runs.inputs import data_options, start_run, unlabelled_of_start
from scorebayes.runs.run import Run, open_run, reconfigured
from scorebayes.stages.calibrate import calibrate
from scorebayes.stages.score import score_split

AFTER_TRAINING = ("evidence", "likelihood", "prior")  # sections that the weights do not depend on


def train(
    path: Path,
    data: str,
    layers: Sequence[Mapping[str, Any]],
    preset: str,
    device: torch.device,
    *,
    resume: bool = False,
) -> Run:
    """From a data source to a trained and calibrated run directory (without labels: trained only, for others to start
    from)."""
    run, images = begin(path, data, layers, preset, device, resume=resume)
    with run.locked():
        if run.config.train.label_free:
            run.image_score.fit(images)
            return run
        for name in run.config.sources:
            for section, fields in run.configured[name].fit(images).items():
                run = reconfigured(run, run.config.changed(section, **fields))
        run = open_run(run.path, str(run.device))
        score_split(run, "val")
        calibrate(run)
    return run


def begin(
    path: Path,
    data: str,
    layers: Sequence[Mapping[str, Any]],
    preset: str,
    device: torch.device,
    *,
    resume: bool = False,
) -> tuple[Run, TrainingImages]:
    """A run directory with its split, new or, with ``resume``, as it is there; and the images to train and validate on."""
    if not (resume and (path / "config.toml").exists()):
        run, by_split = start_run(path, data, layers, preset, device)
    else:
        run = _resume(open_run(path, str(device)), data, layers, preset)
        by_split = {name: run.images(name) for name in ("train", "val")}
    return run, TrainingImages(by_split["train"], by_split["val"], lambda: unlabelled_of_start(run))


def _resume(run: Run, data: str, layers: Sequence[Mapping[str, Any]], preset: str) -> Run:
    """The run, under the configuration asked for. What the weights do not depend on may have changed since it began."""
    known = {
        "prepare": run.config.sections["prepare"],
        "train": {"steps": run.config.train.steps},
        "evidence": {"sources": list(run.config.sources)},
    }
    given = {"data": {"source": data, "options": data_options(layers) or None}}
    wanted = resolve(*layers, given, preset=preset, defaults=known)
    differences = run.config.differences(wanted, leave_out=AFTER_TRAINING)
    if differences:
        raise ConfigError(
            f"{run.path}: the run was started with another configuration: {'; '.join(differences)}.",
            "Resume without these options, or use a new directory.",
        )
    mine = run.config.sections["likelihood"]
    with_choice = wanted.changed("likelihood", first=mine.get("first"))
    same = with_choice.sections["likelihood"] == mine  # the same estimator, whose noise is chosen already
    return reconfigured(run, with_choice if same else wanted)
