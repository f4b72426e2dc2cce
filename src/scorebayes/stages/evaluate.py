"""Evaluation: from log-likelihood tables to a calibration, predictions and metrics. No network is called here.

Threshold and calibration come from the validation split; the split evaluated is only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scorebayes.baselines import BASELINES, fit_baseline, predict_baseline, read_predictions
from scorebayes.data.load import ImageSet
from scorebayes.decision.appearance import LEAST_IMAGES, MOST_IMAGES, statistics
from scorebayes.decision.calibration import Calibration, fit_calibration
from scorebayes.decision.pooling import Units, fit_pooling
from scorebayes.decision.posterior import Posterior, bayes, prior_log_odds
from scorebayes.decision.shift import Sample, measure_shift
from scorebayes.decision.table import LogLikTable
from scorebayes.decision.typicality import fit_typicality
from scorebayes.diffusion.likelihood.bits import bits_per_dim
from scorebayes.errors import DataError
from scorebayes.metrics import choose_threshold, classification_metrics, compare, holm
from scorebayes.runs import looks
from scorebayes.runs.inputs import load_split
from scorebayes.runs.run import Decision, Run
from scorebayes.stages.score import read_table, suffix
from scorebayes.storage.atomic import write_atomically
from scorebayes.storage.digest import sha256_of
from scorebayes.storage.spreadsheet import csv_text

THRESHOLD_RULE = "youden"
PROBABILITY_METRICS = ("log_loss", "brier", "ece", "calibration_", "saturated")
THUMBNAILS = 6  # of the best, of the median and of the worst cases


def calibrate(run: Run, estimator: str = "") -> Decision:
    """Fit noise-level weights, temperature, bias, threshold and typicality on the validation table; write them."""
    table = read_table(run, "val", estimator).usable()
    calibration = fit_calibration(table, table.log_shares, seed=run.config.seed)
    posterior, positive = bayes(table, run.log_prior, calibration), run.facts.info.positive
    threshold = choose_threshold(table.labels, posterior.prob, THRESHOLD_RULE, positive=positive)
    pooling = fit_pooling(
        _units(run, table.keys),
        posterior.log_odds[:, positive],
        table.labels == positive,
        prior_log_odds(run.log_prior, positive),
    )
    reference = looks.reference_pixels(run)
    known = reference if len(reference) >= LEAST_IMAGES else None
    typicality = fit_typicality(table, images=known, seed=run.config.seed)
    decision = Decision(calibration, threshold, typicality, run.log_prior, pooling)
    write_decision(run, decision, "val", estimator)
    return decision


def write_decision(run: Run, decision: Decision, fitted_on: str, estimator: str = "") -> None:
    """Write ``calibration.json`` (``calibration.<estimator>.json``), with the images it was fitted on in words."""
    run.write_json(
        f"calibration{suffix(estimator)}.json",
        {
            **decision.to_dict(),
            "fitted_on": fitted_on,
            "estimator": estimator or run.config.sections["likelihood"]["kind"],
            "threshold_rule": THRESHOLD_RULE,
        },
    )


def evaluate(run: Run, split: str, estimator: str = "") -> dict[str, Any]:
    """Write ``predictions-<split>.csv`` and ``metrics-<split>.json`` and return the metrics."""
    table = read_table(run, split, estimator)
    if (table.labels < 0).any():
        raise DataError(
            f"the split {split!r} has images without a label.", "Use 'scorebayes predict' for them."
        )
    info = run.facts.info
    decision = calibrate(run, estimator) if estimator else run.decision.under(run.log_prior, info.positive)
    patients = run.split.set_index("image_id")["patient_id"].reindex(list(table.keys)).to_numpy()
    images = _in_order(load_split(run, split), table.keys)
    frame = predictions(run, table, decision, pixels=looks.pixels(run, images))
    frame.insert(1, "patient_id", patients)
    frame.insert(2, "label", [info.classes[y] for y in table.labels])
    write_atomically(run.path / f"predictions-{split}{suffix(estimator)}.csv", csv_text(frame))

    good = table.usable()
    posterior = bayes(good, run.log_prior, decision.calibration)
    images = images.subset(np.flatnonzero(table.status == "ok"))
    _write_thumbnails(run, images, good, posterior)
    groups = patients[table.status == "ok"]
    known: dict[str, Any] = {
        "positive": info.positive,
        "groups": None if pd.isna(groups).all() else list(groups),
    }
    metrics: dict[str, Any] = dict(classification_metrics(good.labels, posterior.prob, **known))
    metrics |= {
        "split": split,
        "estimator": estimator or run.config.sections["likelihood"]["kind"],
        "nfe_per_image": float(table.nfe.mean() * table.draws.shape[2]),
        "nfe_per_class": float(table.nfe.mean()),
        "seconds_per_image": float(table.seconds.mean()),
        "failed": len(table) - len(good),
        "atypical": int((frame["typical"] == "no").sum()),
        "undecided": int(posterior.undecided(info.positive, decision.threshold).sum()),
        "threshold": decision.threshold,
        "threshold_rule": f"{THRESHOLD_RULE} on the validation split",
        "at_threshold": classification_metrics(
            good.labels, posterior.prob, threshold=decision.threshold, **known
        ),
        "raw": _probability_metrics(_raw_posterior(good, decision, run.log_prior), good, known),
        "baselines": _baselines(run, split, good, posterior, known),
        "shift": {} if split == "train" else _shift(run, images),
    }
    if not estimator:
        metrics["calibration_sha256"] = sha256_of(run.calibration_path)
    metrics |= _pooled_levels(run, good, posterior, decision)
    if good.kind != "class-score":
        own = good.nats[np.arange(len(good)), good.labels]
        bits = bits_per_dim(own, images.images[0].size, run.facts.std, images.bits)
        metrics["bits_per_dim"] = float(bits.mean())
    run.write_json(f"metrics-{split}{suffix(estimator)}.json", metrics)
    return metrics


def _shift(run: Run, images: ImageSet) -> dict[str, Any]:
    """How far the images of each class can be told from the training images by their look (``measure_shift``)."""
    train = load_split(run, "train").labelled()
    return measure_shift(_sample(run, train), _sample(run, images), run.facts.classes, run.config.seed)


def _sample(run: Run, images: ImageSet) -> Sample:
    some = images.drawn(MOST_IMAGES, run.config.seed)
    return Sample(statistics(looks.pixels(run, some)), some.labels, some.patients)


def predictions(
    run: Run,
    table: LogLikTable,
    decision: Decision,
    log_prior: NDArray | None = None,
    *,
    pixels: NDArray | None = None,
) -> pd.DataFrame:
    """One row per image; empty where it failed.

    Columns: most probable class, calibrated and raw posterior, log-odds with standard error, whether they are above the
    frozen threshold and whether the error leaves a decision, and the distance from typical images with whether it is
    within the threshold (empty in runs that did not judge it). ``log_prior`` [Y]: another prior than the run's; the
    threshold moves with it, as ``Decision.under`` says. ``pixels`` [N, C, S, S]: the images (``looks.pixels``), needed where
    the decision judges their appearance.
    """
    classes, positive = run.facts.classes, run.facts.info.positive
    log_prior = run.log_prior if log_prior is None else log_prior
    decision = decision.under(log_prior, positive)
    good = table.usable()
    posterior = bayes(good, log_prior, decision.calibration)
    raw = _raw_posterior(good, decision, log_prior)
    above = posterior.prob[:, positive] >= decision.threshold
    undecided = posterior.undecided(positive, decision.threshold)
    columns = {"predicted": np.asarray(classes, dtype=object)[posterior.predict()]}
    columns |= {f"prob_{name}": posterior.prob[:, y] for y, name in enumerate(classes)}
    columns |= {f"raw_prob_{name}": raw.prob[:, y] for y, name in enumerate(classes)}
    columns |= {
        "log_odds": posterior.log_odds[:, positive],
        "log_odds_std_error": posterior.log_odds_std_error[:, positive],
        "above_threshold": np.where(above, "yes", "no"),
        "decided": np.where(undecided, "no", "yes"),
    }
    judge = decision.typicality
    seen = None if pixels is None else pixels[table.status == "ok"]
    distance = np.full(len(good), np.nan) if judge is None or not len(good) else judge.distance(good, seen)
    typical = np.full(len(good), "") if judge is None else np.where(judge.is_typical(distance), "yes", "no")
    columns |= {"typicality": distance, "typical": typical}
    frame = pd.DataFrame(columns, index=np.flatnonzero(table.status == "ok")).reindex(range(len(table)))
    frame.insert(0, "image_id", list(table.keys))
    return frame.assign(nfe=table.nfe * len(classes), seconds=table.seconds, status=table.status)


def _raw_posterior(table: LogLikTable, decision: Decision, log_prior: NDArray) -> Posterior:
    return bayes(table, log_prior, _one_temperature(table, decision.calibration))


def _probability_metrics(posterior: Posterior, table: LogLikTable, known: dict[str, Any]) -> dict[str, Any]:
    """What calibration changes, each with its interval."""
    found = classification_metrics(table.labels, posterior.prob, **known)
    return {name: value for name, value in found.items() if name.startswith(PROBABILITY_METRICS)}


def _one_temperature(table: LogLikTable, calibration: Calibration) -> Calibration:
    """The same evidence without fitted level weights and bias: what "raw" means for a table of this kind."""
    if table.kind != "class-score":
        return Calibration.none(table)
    flat = np.full_like(calibration.weights, calibration.weights.mean())
    return replace(calibration, weights=flat, bias=np.zeros_like(calibration.bias))


def _baselines(
    run: Run, split: str, good: LogLikTable, posterior: Posterior, known: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Metrics of every baseline with predictions of the same images, and its paired comparison with the posterior.

    Logistic regression is fitted where it is not there yet; the others by ``scorebayes baseline``.
    """
    fit_baseline(run, "logistic")
    predict_baseline(run, "logistic", split)
    found: dict[str, dict[str, Any]] = {}
    for name, kind in BASELINES.items():
        frame = read_predictions(run, name, split)
        if frame is None:
            continue
        prob = frame.loc[list(good.keys), [f"prob_{c}" for c in run.facts.classes]].to_numpy()
        found[kind.title] = {
            "name": name,
            **classification_metrics(good.labels, prob, **known),
            **compare(good.labels, posterior.prob, prob, **known),
            "seconds_per_image": float(frame["seconds"].mean()),
        }
    tested = [entry for entry in found.values() if entry.get("auc_difference_p") is not None]
    for entry, adjusted in zip(tested, holm([e["auc_difference_p"] for e in tested]), strict=True):
        entry["auc_difference_p_holm"] = float(adjusted)
    return found


def _in_order(images: ImageSet, keys: Sequence[str]) -> ImageSet:
    """The images with these ids, row by row."""
    row_of = {key: row for row, key in enumerate(images.keys)}
    return images.subset([row_of[key] for key in keys])


def _write_thumbnails(run: Run, images: ImageSet, good: LogLikTable, posterior: Posterior) -> None:
    """The best, median and worst cases by the probability of their own class, for the report."""
    order = np.argsort(-posterior.prob[np.arange(len(good)), good.labels], kind="stable")
    middle = len(order) // 2
    shown = np.unique(np.concatenate([np.arange(len(order))[part] for part in _parts(middle)]))
    chosen = images.subset(order[shown])
    pictures = chosen.images * (255.0 / (2**chosen.bits - 1))
    grey = pictures[:, 0] if pictures.shape[1] == 1 else pictures.transpose(0, 2, 3, 1)
    np.savez_compressed(
        run.path / "thumbnails.npz", image_id=np.array(chosen.keys, dtype=str), images=grey.astype(np.uint8)
    )


def _parts(middle: int) -> tuple[slice, slice, slice]:
    half = THUMBNAILS // 2
    return slice(0, THUMBNAILS), slice(max(0, middle - half), middle + half), slice(-THUMBNAILS, None)


def _units(run: Run, keys: Sequence[str]) -> Units:
    """Which of these images show the same breast or, where sides are not known, the same patient."""
    table = run.split.set_index("image_id").reindex(list(keys))
    sides = table.get("laterality", pd.Series("", index=table.index)).fillna("")
    return Units.of(table["patient_id"].to_list(), sides.to_list())


def _pooled_levels(run: Run, table: LogLikTable, posterior: Posterior, decision: Decision) -> dict[str, Any]:
    """Metrics by breast and by patient, where that differs from by image; ``positive`` against the rest."""
    positive = run.facts.info.positive
    units, log_odds = _units(run, table.keys), posterior.log_odds[:, positive]
    prior = prior_log_odds(run.log_prior, positive)
    levels: dict[str, Any] = {}
    for name, level in units.pool(decision.pooling, log_odds, table.labels == positive, prior).items():
        labels, prob, patients = level
        levels[f"{name}_level"] = {
            **classification_metrics(labels, prob, groups=patients),
            "correlation": decision.pooling.correlation,
            "threshold": decision.threshold,
            "at_threshold": classification_metrics(
                labels, prob, groups=patients, threshold=decision.threshold
            ),
        }
    return levels
