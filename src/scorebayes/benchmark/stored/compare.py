"""Compares your own classifier with the models of a benchmark, by its predictions of the test images, in pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from scorebayes.benchmark.stored.answers import Answers, seed_mean_difference
from scorebayes.benchmark.stored.posteriors import posteriors_path, read_posteriors
from scorebayes.data.sources.tables import read_table
from scorebayes.errors import DataError
from scorebayes.storage.spreadsheet import plain

THEIRS = "this classifier"


def compare_predictions(results: Path, predictions: Path) -> dict[str, Any]:
    """AUC of your predictions, and the difference to the AUC of every model of a benchmark.

    Parameters
    ----------
    results: the benchmark's JSON file, with its posteriors next to it.
    predictions: table with ``image_id`` (of MedMNIST ``test-000000`` and so on, by row of the file) and
        ``prob_<positive class>``, as ``scorebayes predict`` writes them; any score that rises with the class will do.

    Returns the AUC (mean over the benchmark's test splits, which is one where the split is official) and, by model, the
    difference with interval and p as ``seed_mean_difference`` finds them. DataError where a file, a column or a
    test image is missing.
    """
    if not (results.is_file() and posteriors_path(results).is_file()):
        raise DataError(
            f"{results}: the results or their file {posteriors_path(results).name} next to them are missing.",
            "Run the benchmark, or choose a file in benchmarks/results/ that has one.",
        )
    found = json.loads(results.read_text(encoding="utf-8"))
    column = f"prob_{found['positive']}"
    table = read_table(predictions, ["image_id", column])
    try:
        own = {plain(row["image_id"]): float(row[column]) for row in table.rows}
    except ValueError as error:
        raise DataError(
            f"{predictions}: {column} has a value that is not a number ({error}).", "Fix the table."
        ) from None
    said = read_posteriors(posteriors_path(results))
    answers: dict[str, list[Answers]] = {}
    for (model, _), rows in said.items():
        beside = _beside(rows, model, own, found["positive"], predictions)
        answers.setdefault(model, []).append(beside)
    first = next(iter(answers.values()))
    return {
        "auc": float(np.mean([roc_auc_score(o.labels, o.prob[THEIRS][:, 1]) for o in first])),
        "minus": {model: seed_mean_difference(each, THEIRS, model) for model, each in answers.items()},
    }


def _beside(
    rows: pd.DataFrame, model: str, own: dict[str, float], positive: str, predictions: Path
) -> Answers:
    """One seed of a model, and the predictions of the same images; the positive class is 1."""
    absent = [image for image in rows.index if image not in own]
    if absent:
        raise DataError(
            f"{predictions} lacks {len(absent)} of {len(rows)} test images, for example {absent[0]}.",
            "Predict the whole test split.",
        )
    score = {
        model: rows[f"prob_{positive}"].to_numpy(np.float64),
        THEIRS: np.array([own[image] for image in rows.index]),
    }
    labels = (rows["label"] == positive).to_numpy(np.int64)
    prob = {name: np.stack([1 - values, values], axis=1) for name, values in score.items()}
    return Answers(labels, tuple(rows.index), tuple(rows["patient_id"]), prob)
