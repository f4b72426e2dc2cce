"""Baselines in a run directory: fitting, opening, and their predictions for ``evaluate``.

    baselines/<name>/baseline.json  weights.safetensors  predictions-<split>.csv

``baseline.json`` is written last: a folder without it is unfinished work, which fitting takes up.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
from scipy.special import softmax

from scorebayes.baselines.architectures import densenet121, efficientnet_b0, resnet, vit
from scorebayes.baselines.base import Baseline, Kind, Temperature, fit_temperature, raw_logits
from scorebayes.baselines.fine_tuned import FineTuned
from scorebayes.baselines.hog_svm import HogSvm
from scorebayes.baselines.logistic import Logistic
from scorebayes.baselines.network import Network
from scorebayes.baselines.on_features import LogisticOnFeatures
from scorebayes.errors import ConfigError, command
from scorebayes.runs.device import environment
from scorebayes.runs.run import Run
from scorebayes.storage import sealed
from scorebayes.storage.spreadsheet import csv_text, plain
from scorebayes.training.plan import require_classes

BASELINES: dict[str, Kind] = {
    "logistic": Logistic(),
    "hog-svm": HogSvm(),
    "resnet18": Network("ResNet-18", resnet("basic", (2, 2, 2, 2)), "layer4"),
    "resnet50": Network("ResNet-50", resnet("bottleneck", (3, 4, 6, 3)), "layer4"),
    "densenet121": Network("DenseNet-121", densenet121, "features"),
    "efficientnet-b0": Network("EfficientNet-B0", efficientnet_b0, "_bn1"),
    "vit": Network("ViT", vit, "map", rates=(1e-4, 3e-4, 1e-3)),
    "logistic-on-features": LogisticOnFeatures(of_statistics=False),
    "logistic-on-statistics": LogisticOnFeatures(of_statistics=True),
    "fine-tuned": FineTuned("fine-tuned encoder", only_last_block=False),
    "fine-tuned-last-block": FineTuned("fine-tuned encoder, last block only", only_last_block=True),
}


def fit_baseline(run: Run, name: str, steps: int | None = None, *, tuned: Run | None = None) -> Baseline:
    """The baseline of a run, trained and calibrated unless that is done already.

    ``steps``: of a network's final training; None: what costs as many multiply-adds as the training of the run's score,
    but at least 100; a fine-tuned encoder has a number of its own. ``tuned``: a run with another seed whose baseline
    was fitted with as many steps; its trials of the settings count here, too, unless the seeds drew other test splits.

    Raises ConfigError for an unknown name, DataError where a class has fewer than two images.
    """
    kind, folder = _known(name), _folder(run, name)
    if (folder / "baseline.json").exists():
        return open_baseline(run, name)
    train, val = run.images("train").labelled(), run.images("val").labelled()
    require_classes(train.labels, run.facts.classes, "training")
    require_classes(val.labels, run.facts.classes, "validation")
    sealed.make_folder(folder)
    if tuned is not None and _test_images(run) == _test_images(tuned):
        trials = open_baseline(tuned, name).record.get("settings_tried", [])
        sealed.write(folder / "trials.json", json.dumps(trials))
    found = kind.fit(run, train, val, folder, steps)
    calibration = fit_temperature(
        raw_logits(run, found.net, val), found.log_prior, val.labels, val.patients, run.config.seed
    )
    weights = safetensors.torch.save(
        {key: value.detach().cpu().contiguous() for key, value in found.net.state_dict().items()}
    )
    sealed.write(folder / "weights.safetensors", weights)
    record = {
        "name": name,
        "title": kind.title,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "parameters": sum(parameter.numel() for parameter in found.net.parameters()),
        **found.record,
        "val_log_loss": calibration.log_loss,
        "calibration": calibration.to_dict(),
        "environment": environment(run.device),
    }
    sealed.write(folder / "baseline.json", json.dumps(record, indent=1) + "\n")
    for work in ("checkpoints", "trials.json"):
        if (folder / work).exists():
            sealed.remove(folder / work)
    return Baseline(run, kind, found.net, calibration, record)


def open_baseline(run: Run, name: str) -> Baseline:
    """A baseline that was fitted. ConfigError where it was not, or its weights are missing or changed."""
    kind, folder = _known(name), _folder(run, name)
    if not (folder / "baseline.json").exists():
        raise ConfigError(
            f"{run.path}: the baseline {name!r} has not been trained.",
            f"Run `{command('baseline', run.path, name)}`.",
        )
    record = sealed.read_json(folder / "baseline.json")
    path = folder / "weights.safetensors"
    weights = sealed.read(path) if path.exists() else b""
    try:
        known, calibration = record["sha256"], Temperature.from_dict(record["calibration"])
    except (LookupError, TypeError, ValueError) as error:
        raise sealed.damaged(folder / "baseline.json", error) from error
    if hashlib.sha256(weights).hexdigest() != known:
        raise ConfigError(
            f"{path}: the weights are missing or were changed (their SHA-256 differs from baseline.json).",
            f"Restore the file, or delete {folder} to train again.",
        )
    net = kind.build(run)
    try:
        net.load_state_dict(safetensors.torch.load(weights))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise sealed.damaged(path, error) from error
    return Baseline(run, kind, net, calibration, record)


def predict_baseline(run: Run, name: str, split: str) -> Path:
    """Write ``predictions-<split>.csv`` of a fitted baseline, unless it is there.

    Columns: image_id, prob_<class> (under the run's prior), logit_<class> (before the prior), seconds (of an image).
    """
    path = _folder(run, name) / f"predictions-{split}.csv"
    if path.exists():
        return path
    baseline = open_baseline(run, name)
    images = run.images(split)
    start = time.monotonic()
    logits = baseline.evidence(images)
    seconds = (time.monotonic() - start) / len(images)
    prob = softmax(logits + run.log_prior, axis=1)
    columns: dict[str, Any] = {"image_id": list(images.keys)}
    columns |= {f"prob_{c}": prob[:, y] for y, c in enumerate(run.facts.classes)}
    columns |= {f"logit_{c}": logits[:, y] for y, c in enumerate(run.facts.classes)}
    sealed.write(path, csv_text(pd.DataFrame(columns | {"seconds": seconds})))
    return path


def read_predictions(run: Run, name: str, split: str) -> pd.DataFrame | None:
    """The predictions of a baseline, indexed by image_id; None if there are none. ``prob_<class>`` is recomputed:
    the run's prior may have changed since."""
    path = _folder(run, name) / f"predictions-{split}.csv"
    if not path.exists():
        return None
    content = sealed.read(path)
    try:
        frame = pd.read_csv(io.BytesIO(content), keep_default_na=False, dtype={"image_id": str})
        frame = frame.assign(image_id=frame["image_id"].map(plain), seconds=frame["seconds"].astype(float))
        frame = frame.set_index("image_id")
        logits = frame[[f"logit_{c}" for c in run.facts.classes]].to_numpy(np.float64)
        if not frame.index.is_unique:
            raise ValueError("an image has two rows")
    except (LookupError, TypeError, ValueError) as error:
        raise sealed.damaged(path, error) from error
    frame[[f"prob_{c}" for c in run.facts.classes]] = softmax(logits + run.log_prior, axis=1)
    return frame


def _test_images(run: Run) -> set[str]:
    return set(run.split.loc[run.split["split"] == "test", "image_id"])


def _known(name: str) -> Kind:
    if name not in BASELINES:
        raise ConfigError(f"unknown baseline {name!r}.", f"Known: {', '.join(BASELINES)}.")
    return BASELINES[name]


def _folder(run: Run, name: str) -> Path:
    return run.path / "baselines" / name
