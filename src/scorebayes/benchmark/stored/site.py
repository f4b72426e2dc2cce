"""The gain from labelled images of the site of use: stored posteriors are recalibrated on some test images.

On a shifted test split (``scorebayes.decision.shift``) the threshold may no longer hold. Here a few of its images, drawn at
random, recalibrate a model like ``scorebayes recalibrate``, and the other images are evaluated. Test labels are used, so
this is not a result of a model; it shows what recalibration would gain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax

from scorebayes.baselines.base import fit_temperature
from scorebayes.benchmark.stored.answers import spread
from scorebayes.benchmark.stored.posteriors import class_indices, posteriors_path, read_posteriors
from scorebayes.errors import DataError
from scorebayes.metrics import ece
from scorebayes.runs.device import environment, pick_device

REPEATS = 20  # draws of the images, for every seed


def measure_site(results: Path, models: Sequence[str], numbers: Sequence[int]) -> dict[str, Any]:
    """Accuracy and calibration error of the models, as they are (0) and calibrated on so many test patients.

    ``results``: a benchmark's JSON file with its posteriors beside it (DataError where they are not there, or a model is not
    in them, or has fewer patients). All are judged on the patients that the largest number leaves, the same for all numbers.
    Keys: ``models`` -> model -> number -> ``accuracy`` and ``ece``, each mean, std and values over seeds and draws.
    """
    said = read_posteriors(posteriors_path(results))
    classes = json.loads(results.read_text(encoding="utf-8"))["classes"] if said else []
    found: dict[str, Any] = {}
    for model in models:
        rows = [frame for (name, _), frame in said.items() if name == model]
        if not rows:
            raise DataError(
                f"{posteriors_path(results)}: there are no posteriors of {model!r}.", "Run the benchmark."
            )
        values: dict[int, list[tuple[float, float]]] = {number: [] for number in (0, *numbers)}
        for frame in rows:
            for draw in range(REPEATS):
                for number, value in _one_draw(frame, classes, numbers, draw).items():
                    values[number].append(value)
        found[model] = {
            str(number): {
                name: spread(column)
                for name, column in zip(("accuracy", "ece"), zip(*of, strict=True), strict=True)
            }
            for number, of in values.items()
        }
    return {
        "benchmark": results.stem,
        "repeats": REPEATS,
        "models": found,
        "environment": environment(pick_device("cpu")),
    }


def _one_draw(
    frame: pd.DataFrame, classes: Sequence[str], numbers: Sequence[int], seed: int
) -> dict[int, tuple[float, float]]:
    """Number of patients -> accuracy and calibration error on the patients that no number takes."""
    labels = class_indices(frame["label"], classes)
    prob = frame[[f"prob_{name}" for name in classes]].to_numpy(np.float64)
    whose = frame["patient_id"].to_numpy(str)
    patients = np.random.default_rng(seed).permutation(frame["patient_id"].unique())
    if len(patients) <= max(numbers):
        raise DataError(
            f"there are {len(patients)} patients, too few to calibrate on {max(numbers)}.",
            "Use fewer for calibration.",
        )
    judged = frame["patient_id"].isin(patients[max(numbers) :]).to_numpy()
    found = {0: _judge(labels[judged], prob[judged])}
    for number in numbers:
        taken = frame["patient_id"].isin(patients[:number]).to_numpy()
        found[number] = _judge(labels[judged], _calibrated(prob, labels, whose, taken)[judged])
    return found


def _calibrated(
    prob: NDArray, labels: NDArray, patients: NDArray, taken: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Posteriors [N, Y] after a calibration fitted on the images that were taken, under their class shares."""
    logits = np.log(np.maximum(prob, np.finfo(np.float32).tiny))
    found = fit_temperature(
        logits[taken], np.zeros(prob.shape[1]), labels[taken], patients[taken].tolist(), seed=0
    )
    shares = np.log(np.bincount(labels[taken], minlength=prob.shape[1]) / taken.sum())
    return softmax(found.weight * logits + found.bias + shares, axis=1)


def _judge(labels: NDArray[np.int64], prob: NDArray) -> tuple[float, float]:
    return float((prob.argmax(axis=1) == labels).mean()), ece(labels, prob)
