"""Evaluation: from evidence tables to predictions and metrics. No network is called here.

Threshold and calibration come from the validation split; the split evaluated is only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scorebayes.baselines import BASELINES, fit_baseline, predict_baseline, read_predictions
from scorebayes.data.load import ImageSet
from scorebayes.decision.appearance import MOST_IMAGES, statistics
from scorebayes.decision.posterior import Posterior, bayes
from scorebayes.decision.shift import Sample, measure_shift
from scorebayes.decision.table import OK, EvidenceTable
from scorebayes.diffusion.likelihood.bits import bits_per_dim
from scorebayes.errors import DataError, command
from scorebayes.metrics import classification_metrics, compare, holm
from scorebayes.runs.run import Run
from scorebayes.stages.calibrate import calibrate
from scorebayes.stages.score import read_table, suffix
from scorebayes.storage import sealed
from scorebayes.storage.arrays import write_arrays
from scorebayes.storage.digest import sha256_of
from scorebayes.storage.spreadsheet import csv_text
from scorebayes.tasks import task_of
from scorebayes.tasks.classify import known_of

THUMBNAILS = 6  # of the best, of the median and of the worst cases


def evaluate(run: Run, split: str, estimator: str = "") -> dict[str, Any]:
    """Write ``predictions-<split>.csv`` and ``metrics-<split>.json`` and return the metrics."""
    with run.locked():
        return _evaluated(run, split, estimator)


def _evaluated(run: Run, split: str, estimator: str) -> dict[str, Any]:
    table = read_table(run, split, estimator)
    if (table.labels < 0).any():
        raise DataError(
            f"the split {split!r} has images without a label.",
            f"Use `{command('predict', run.path, 'FILES')}` for these images.",
        )
    info, task = run.facts.info, task_of(run)
    decision = calibrate(run, estimator) if estimator else run.decision.under(run.log_prior, info.positive)
    patients = run.split.set_index("image_id")["patient_id"].reindex(list(table.keys)).to_numpy()
    images = _in_order(run.images(split), table.keys)
    frame = task.answers(run, table, decision, pixels=run.pixels(images))
    frame.insert(1, "patient_id", patients)
    frame.insert(2, "label", [info.classes[y] for y in table.labels])
    sealed.write(run.path / f"predictions-{split}{suffix(estimator)}.csv", csv_text(frame))

    good, there = table.usable(), table.status == OK
    images, patients = images.subset(np.flatnonzero(there)), patients[there]
    posterior = bayes(good, run.log_prior, decision.calibration)
    _write_thumbnails(run, images, good, posterior)
    metrics: dict[str, Any] = {
        **task.judge(run, good, decision, patients),
        "split": split,
        "estimator": estimator or run.config.sections["likelihood"]["kind"],
        "nfe_per_image": float(table.nfe.mean() * table.n_classes),
        "nfe_per_class": float(table.nfe.mean()),
        "seconds_per_image": float(table.seconds.mean()),
        "failed": len(table) - len(good),
        "atypical": int((frame["typical"] == "no").sum()),
        "baselines": _baselines(run, split, good, posterior, known_of(run, patients)),
        "shift": {} if split == "train" else _shift(run, images),
    }
    if not estimator:
        metrics["calibration_sha256"] = sha256_of(run.calibration_path)
    metrics |= _bits_per_dim(run, good, images)
    run.write_json(f"metrics-{split}{suffix(estimator)}.json", metrics)
    return metrics


def _bits_per_dim(run: Run, table: EvidenceTable, images: ImageSet) -> dict[str, float]:
    """Of the images under their own class, if the estimator gives nats."""
    if any(block.kind not in ("density", "lower-bound") for block in table.blocks.values()):
        return {}
    own = table.only.nats[np.arange(len(table)), table.labels]
    bits = bits_per_dim(own, images.images[0].size, run.facts.std, images.bits)
    return {"bits_per_dim": float(bits.mean())}


def _shift(run: Run, images: ImageSet) -> dict[str, Any]:
    """How different the images of each class look from the training images (``measure_shift``)."""
    train = run.images("train").labelled()
    return measure_shift(_sample(run, train), _sample(run, images), run.facts.classes, run.config.seed)


def _sample(run: Run, images: ImageSet) -> Sample:
    some = images.drawn(MOST_IMAGES, run.config.seed)
    return Sample(statistics(run.pixels(some)), some.labels, some.patients)


def _baselines(
    run: Run, split: str, good: EvidenceTable, posterior: Posterior, known: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Metrics of every baseline with predictions of the same images, and its paired comparison with the posterior.

    Logistic regression is fitted if needed; ``scorebayes baseline`` fits the others.
    """
    fit_baseline(run, "logistic")
    predict_baseline(run, "logistic", split)
    found: dict[str, dict[str, Any]] = {}
    for name, kind in BASELINES.items():
        frame = read_predictions(run, name, split)
        if frame is None:
            continue
        if missing := set(good.keys) - {*frame.index}:
            raise DataError(
                f"{run.path}: the baseline {name!r} has no predictions of {len(missing)} images, such as {min(missing)}.",
                f"Delete {run.path / 'baselines' / name / f'predictions-{split}.csv'}; they are made again.",
            )
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


def _write_thumbnails(run: Run, images: ImageSet, good: EvidenceTable, posterior: Posterior) -> None:
    """The best, median and worst cases by the probability of their own class, for the report."""
    order = np.argsort(-posterior.prob[np.arange(len(good)), good.labels], kind="stable")
    middle = len(order) // 2
    shown = np.unique(np.concatenate([np.arange(len(order))[part] for part in _parts(middle)]))
    chosen = images.subset(order[shown])
    pictures = chosen.images * (255.0 / (2**chosen.bits - 1))
    grey = pictures[:, 0] if pictures.shape[1] == 1 else pictures.transpose(0, 2, 3, 1)
    arrays = {"image_id": np.array(chosen.keys, dtype=str), "images": grey.astype(np.uint8)}
    write_arrays(run.path / "thumbnails.npz", arrays)


def _parts(middle: int) -> tuple[slice, slice, slice]:
    half = THUMBNAILS // 2
    return slice(0, THUMBNAILS), slice(max(0, middle - half), middle + half), slice(-THUMBNAILS, None)
