"""Training: from a data source to a trained and calibrated run directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from scorebayes.decision.posterior import bayes
from scorebayes.errors import ConfigError, command
from scorebayes.evidence.base import TrainingImages
from scorebayes.metrics import classification_metrics
from scorebayes.runs.config import resolve
from scorebayes.runs.facts import FORMAT
from scorebayes.runs.inputs import UNFINISHED, data_options, make_directory, start_run, unlabelled_of_start
from scorebayes.runs.run import Run, open_run, reconfigured
from scorebayes.stages.calibrate import calibrate
from scorebayes.stages.score import read_table, score_split
from scorebayes.storage.checkpoint import Checkpoints
from scorebayes.storage.lock import LOCK, locked
from scorebayes.tasks.classify import known_of
from scorebayes.training.plan import require_classes

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
    with _directory(path):
        with _nothing_left(path):
            run, images = begin(path, data, layers, preset, device, resume=resume)
            if not run.config.train.label_free:
                for name, of in (("training", images.train), ("validation", images.val)):
                    require_classes(of.labelled().labels, run.facts.classes, name)
        return _finished(run, images)


def resume(path: Path, device: torch.device, given: Mapping[str, Mapping[str, Any]]) -> Run:
    """Go on with a run as its own configuration says.

    given: what the user asks for besides, as a layer for each option, by its words ("--steps 500"); later ones win.
    What the weights do not depend on may change. ConfigError naming the options that contradict the run otherwise.
    """
    run = open_run(path, str(device))
    own: dict[str, Any] = {"seed": run.config.seed, **run.config.sections}
    for layer in given.values():
        for name, table in layer.items():
            if (
                isinstance(table, Mapping)
                and "kind" in table
                and own.get(name, {}).get("kind") != table["kind"]
            ):
                own[name] = {}  # fields of another kind
    wanted = resolve(*given.values(), preset=None, defaults=own)
    differences = run.config.differences(wanted, leave_out=AFTER_TRAINING)
    if differences:
        asked = {_who_asked(given, difference): None for difference in differences}
        raise ConfigError(
            f"{path}: the run was started with another configuration than {', '.join(asked)}: {'; '.join(differences)}.",
            f"Resume it with `{command('train', '--resume', path)}`, or use a new directory.",
        )
    mine = run.config.sections["likelihood"]
    if wanted.sections["likelihood"] != mine and "first" in mine:
        wanted = wanted.changed("likelihood", first=[])  # chosen for the estimator as it was
    with run.locked():
        if wanted != run.config or run.format < FORMAT:
            run = reconfigured(run, wanted)
        return _finished(run, _images_of(run))


def _who_asked(given: Mapping[str, Mapping[str, Any]], difference: str) -> str:
    """The last option that sets the field that differs."""
    section, _, field = difference.partition(":")[0].partition(".")
    return [words for words, of in given.items() if section in of and (not field or field in of[section])][-1]


def summary(run: Run) -> dict[str, Any]:
    """What a training came to: time, steps, and what the validation images say of the classifier."""
    states = [
        entry
        for folder in (run.path, run.path / "features")
        for entry in Checkpoints(folder / "checkpoints").entries("state")
    ]
    settings = run.config.train
    steps = max((entry["step"] for entry in states), default=0)
    found: dict[str, Any] = {
        "run": run.path,
        "steps": steps,
        "steps_asked": settings.steps,
        "minutes_asked": settings.minutes,
        "stopped_by_minutes": settings.minutes is not None and steps < settings.steps,
        "seconds": sum(source.seconds for source in run.configured.values() if source.learned),
    }
    if settings.label_free:
        return found
    decision, table = run.decision, read_table(run, "val").usable()
    posterior = bayes(table, run.log_prior, decision.calibration)
    patients = run.split.set_index("image_id")["patient_id"].reindex(list(table.keys)).to_numpy()
    judged = classification_metrics(
        table.labels, posterior.prob, threshold=decision.threshold, **known_of(run, patients)
    )
    names = ("n", "n_patients", "auc", "auc_ci95", "sensitivity", "specificity")
    return found | {
        "positive": run.facts.classes[run.facts.info.positive],
        "validation": {
            **{name: judged.get(name) for name in names},
            "threshold": decision.threshold,
            "log_loss": decision.calibration.log_loss,
        },
    }


def _finished(run: Run, images: TrainingImages) -> Run:
    """The run, trained and calibrated as far as it is not yet."""
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
    with _directory(path), _nothing_left(path):
        if resume and (path / "config.toml").exists():
            run = _under(open_run(path, str(device)), data, layers, preset)
            return run, _images_of(run)
        run, by_split = start_run(path, data, layers, preset, device)
    return run, TrainingImages(by_split["train"], by_split["val"], lambda: unlabelled_of_start(run))


def _images_of(run: Run) -> TrainingImages:
    """What a run learns from."""
    return TrainingImages(run.images("train"), run.images("val"), lambda: unlabelled_of_start(run))


@contextmanager
def _directory(path: Path) -> Iterator[None]:
    """The run directory, made and locked before anything is written. The lock goes again where no run came of it, and so
    does the directory where it is empty."""
    lock_is_new = not os.path.lexists(path / LOCK)
    made = make_directory(path)
    with locked(path):
        try:
            yield
        finally:
            if lock_is_new and not (path / "config.toml").exists():
                (path / LOCK).unlink(missing_ok=True)
                for folder in made:
                    with suppress(OSError):  # it holds something
                        folder.rmdir()


@contextmanager
def _nothing_left(path: Path) -> Iterator[None]:
    """Where an error keeps a directory from becoming a run, what was made is removed; what was there before stays, and so
    does a run that was there. A start that somebody stopped keeps its prepared images."""
    before = {entry.name for entry in path.iterdir()}
    try:
        yield
    except Exception:
        if "config.toml" not in before:
            for name in {*UNFINISHED, "config.toml"} - before:
                entry = path / name
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)
        raise


def _under(run: Run, data: str, layers: Sequence[Mapping[str, Any]], preset: str) -> Run:
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
