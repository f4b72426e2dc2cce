"""Evaluation: from log-likelihood tables to a calibration, predictions and metrics. No network is called here.

The threshold and the calibration come from the validation split; the split evaluated is only read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scorebayes.baselines import fit_logistic
from scorebayes.posterior import Posterior, bayes
from scorebayes.calibrate import Calibration, fit_calibration
from scorebayes.checkpoint import write_atomically
from scorebayes.errors import DataError
from scorebayes.inputs import load_split
from scorebayes.metrics import choose_threshold, classification_metrics
from scorebayes.run import Run
from scorebayes.scoring import read_table
from scorebayes.table import LogLikTable

THRESHOLD_RULE = "youden"


def calibrate(run: Run) -> Calibration:
    """Fit noise-level weights, temperature and bias on the validation table; write ``calibration.json``."""
    table = read_table(run, "val")
    calibration = fit_calibration(table, _log_shares(table), seed=run.config.seed)
    positive = run.facts.info.positive
    prob = bayes(_usable(table), run.log_prior, calibration).prob
    run.write_json(
        "calibration.json",
        {
            **calibration.to_dict(),
            "log_prior": run.log_prior.tolist(),
            "fitted_on": "val",
            "estimator": run.config.sections["likelihood"],
            "threshold": choose_threshold(_usable(table).labels, prob, THRESHOLD_RULE, positive=positive),
            "threshold_rule": THRESHOLD_RULE,
        },
    )
    return calibration


def evaluate(run: Run, split: str) -> dict[str, Any]:
    """Write ``predictions-<split>.csv`` and ``metrics-<split>.json`` and return the metrics."""
    table = read_table(run, split)
    if (table.labels < 0).any():
        raise DataError(
            f"the split {split!r} has images without a label.", "Use 'scorebayes predict' for them."
        )
    good = _usable(table)
    posterior = bayes(good, run.log_prior, run.calibration)
    threshold = run.threshold
    info = run.facts.info
    patients = run.split.set_index("image_id")["patient_id"].reindex(list(table.keys))
    frame = predictions(run, table, posterior)
    frame.insert(1, "patient_id", patients.to_numpy())
    frame.insert(2, "label", [info.classes[y] for y in table.labels])
    write_atomically(run.path / f"predictions-{split}.csv", frame.to_csv(index=False))

    groups = patients[table.status == "ok"]
    known = {"positive": info.positive, "groups": None if groups.isna().all() else groups.tolist()}
    metrics = classification_metrics(good.labels, posterior.prob, **known)
    at_threshold = classification_metrics(
        good.labels, posterior.prob, threshold=threshold, n_bootstrap=0, **known
    )
    metrics |= {
        "split": split,
        "estimator": run.config.sections["likelihood"],
        "nfe_per_image": float(table.nfe.mean() * table.draws.shape[2]),
        "nfe_per_class": float(table.nfe.mean()),
        "seconds_per_image": float(table.seconds.mean()),
        "failed": int((table.status != "ok").sum()),
        "threshold": threshold,
        "threshold_rule": f"{THRESHOLD_RULE} on the validation split",
        "at_threshold": at_threshold,
        "undecided": int(posterior.undecided(info.positive, threshold).sum()),
        "baselines": {"logistic regression on pixels": _baseline(run, split, known["positive"])},
    }
    if known["groups"] is not None and len(set(known["groups"])) < len(good):
        metrics["patient_level"] = _patient_level(good, posterior, known["groups"], info.positive)
    run.write_json(f"metrics-{split}.json", metrics)
    return metrics


def predictions(run: Run, table: LogLikTable, posterior: Posterior) -> pd.DataFrame:
    """One row per image of the table; the posterior has the images whose status is "ok"."""
    classes, positive = run.facts.info.classes, run.facts.info.positive
    ok = table.status == "ok"
    raw = bayes(_usable(table), run.log_prior, _one_temperature(table, run.calibration)).prob
    undecided = posterior.undecided(positive, run.threshold)
    frame = pd.DataFrame({"image_id": list(table.keys)})

    def fill(values: Any, missing: Any) -> np.ndarray:
        column = np.full(
            len(table), missing, dtype=np.asarray(values).dtype if missing is not None else object
        )
        column[ok] = values
        return column

    frame["predicted"] = fill(np.asarray(classes, dtype=object)[posterior.predict()], None)
    for y, name in enumerate(classes):
        frame[f"prob_{name}"] = fill(posterior.prob[:, y], np.nan)
    for y, name in enumerate(classes):
        frame[f"raw_prob_{name}"] = fill(raw[:, y], np.nan)
    frame["log_odds"] = fill(posterior.log_odds[:, positive], np.nan)
    frame["log_odds_std_error"] = fill(posterior.log_odds_std_error[:, positive], np.nan)
    frame["decided"] = fill(np.where(undecided, "no", "yes").astype(object), None)
    frame["nfe"] = table.nfe * table.draws.shape[2]
    frame["seconds"] = table.seconds
    frame["status"] = table.status
    return frame


def _usable(table: LogLikTable) -> LogLikTable:
    return table.rows(table.status == "ok")


def _log_shares(table: LogLikTable) -> np.ndarray:
    """Log class shares of a labelled table [Y]."""
    return np.log(np.bincount(table.labels, minlength=table.draws.shape[2]) / len(table))


def _one_temperature(table: LogLikTable, calibration: Calibration) -> Calibration:
    """The same evidence without the fitted level weights and bias: what "raw" means for a table of this kind."""
    if table.kind != "class-score":
        return Calibration.none(table)
    flat = np.full_like(calibration.weights, calibration.weights.mean())
    return Calibration(flat, np.zeros_like(calibration.bias), calibration.level_log_snr, calibration.kind)


def _baseline(run: Run, split: str, positive: int) -> dict[str, Any]:
    images = load_split(run, split)
    prob = fit_logistic(load_split(run, "train"), load_split(run, "val"))(images)
    return classification_metrics(images.labels, prob, positive=positive, groups=list(images.patients))


def _patient_level(table: LogLikTable, posterior: Posterior, patients: list, positive: int) -> dict[str, Any]:
    """Views of a patient pooled by Bayes' rule: the mean of their log-odds over the prior is added to the prior.

    The mean (a discount of one over the number of views) is the safe choice for views of one lesion, whose evidence is
    nearly the same; a patient counts as positive if one of the images is.
    """
    codes, index = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    count = np.bincount(index)
    log_odds = np.bincount(index, posterior.log_odds[:, positive]) / count
    labels = np.zeros(len(codes), dtype=np.int64)
    np.maximum.at(labels, index, (table.labels == positive).astype(np.int64))
    prob = 1 / (1 + np.exp(-log_odds))
    return classification_metrics(labels, np.stack([1 - prob, prob], axis=1), positive=1)
