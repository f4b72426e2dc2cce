"""How a run begins: from a data source to a run directory with its images, split by patient."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from scorebayes.data import open_source
from scorebayes.data.base import Record, Source
from scorebayes.data.load import ImageSet
from scorebayes.data.split import leakage_audit, split_patients, subsample
from scorebayes.errors import ConfigError, DataError
from scorebayes.runs.config import Config, resolve
from scorebayes.runs.reader import Reader
from scorebayes.runs.run import Facts, Run, create_run, open_run, require_prior
from scorebayes.training.settings import TrainConfig

LARGEST_DEFAULT_SIZE = 64
FEW_IMAGES, STEPS_POWER = 1000, 0.4  # up to so many, the steps are the configuration's default
UNFINISHED = {"cache", "source.json", "environment.json", "split.parquet", "audit.json", "quarantine.csv"}
"""What a start that was broken off leaves; config.toml is written last and makes it a run."""


def suggest(source: Source, records: Sequence[Record]) -> dict[str, Any]:
    """What a data set implies for the configuration: image size, channels, bit depth, and training steps.

    Steps grow with the number of images, slowly (docs/decisions/0014).
    """
    steps = TrainConfig.steps * max(1.0, len(records) / FEW_IMAGES) ** STEPS_POWER
    for record in records:
        try:
            side = max(source.read(record).shape[:2])
        except DataError:
            continue
        return {
            "prepare": {
                "size": min(side, LARGEST_DEFAULT_SIZE),
                "channels": source.info.channels,
                "bits": source.info.bits,
            },
            "train": {"steps": int(round(steps, -2))},
        }
    raise DataError(f"{source.info.title}: none of the {len(records)} images can be read.")


def start_run(
    path: Path, data: str, layers: Sequence[Mapping[str, Any]], preset: str, device: torch.device
) -> tuple[Run, dict[str, ImageSet]]:
    """A new run directory and its images by split ("train" and "val").

    A start that was broken off is taken up where it was: prepared images are in the directory's cache. Raises ConfigError
    if the directory holds something else or cannot be written, DataError if the data cannot be used.
    """
    _require_writable(path)
    options = data_options(layers)
    source = open_source(data, **options)
    records = source.records()
    given = {"data": {"source": data, "options": options or None}}
    config = resolve(*layers, given, preset=preset, defaults=suggest(source, records))
    require_prior(config.prior, source.info.classes)
    splits = split_patients(records, fractions=config.data.fractions, seed=config.seed)
    used = _reduced(records, splits, config, source)
    images, rejected = Reader(path, config, source.info).load(source, used, options)
    audit = leakage_audit(images.records, splits, images.images) | _reduction(records, used)
    _judge_copies(audit, images.records)
    by_split = {name: _of_split(images, splits, name) for name in ("train", "val")}
    train = by_split["train"] if config.train.label_free else by_split["train"].labelled()
    if not len(train):
        raise DataError(
            f"{source.info.title}: no usable image in the training split.",
            "See the reasons: scorebayes data check.",
        )
    mean, std = _statistics(train)
    if config.train.init:  # what the weights that training starts from expect
        start = open_run(config.train.init, "cpu").facts
        mean, std = start.mean, start.std
    labels = train.labels
    counts = np.bincount(labels[labels >= 0], minlength=len(source.info.classes))
    run = Run(path, config, Facts(source.info, mean, std, tuple(int(n) for n in counts)), device)
    _write_split(run, images.records, splits)
    run.write_json("audit.json", audit)
    left_out = [*source.rejected, *rejected]
    run.quarantine(left_out)
    create_run(run)
    if left_out:
        warnings.warn(
            f"{len(left_out)} images or table rows were left out; {path / 'quarantine.csv'} says why.",
            stacklevel=2,
        )
    return run, by_split


def unlabelled_of_start(run: Run) -> ImageSet | None:
    """The training images of the label-free run that this one started from, but for its own, without their labels; None
    where there is no such run, or its weights came without their images."""
    start = run.start
    if start is None or not start.config.train.label_free:
        return None
    try:
        others = start.images("train")
    except DataError:
        return None
    known = run.split.query("split == 'train'")["image_id"]
    new = others.subset(np.flatnonzero(~np.isin(others.keys, known)))
    return ImageSet(new.images, new.bits, tuple(replace(record, label=None) for record in new.records))


def absolute_source(data: str) -> str:
    """KIND:PATH with the path made absolute, so that the run can be used from any folder."""
    kind, colon, rest = data.partition(":")
    return f"{kind}:{Path(rest).resolve()}" if colon and Path(rest).exists() else data


def _reduced(
    records: Sequence[Record], splits: Mapping[str, str], config: Config, source: Source
) -> list[Record]:
    """The records that a run uses: fewer, skewed or mislabelled as [data] asks; the positive class is the rare one."""
    asked = config.data
    return subsample(
        records, splits, per_class=asked.per_class, imbalance=asked.imbalance, rare=source.info.positive,
        label_noise=asked.label_noise, reduce_val=asked.reduce_val, seed=config.seed,
    )  # fmt: skip


def _reduction(records: Sequence[Record], used: Sequence[Record]) -> dict[str, int]:
    """What was done to the records on purpose, for the audit."""
    true = {record.image_id: record.label for record in records}
    return {
        "images_left_out_on_purpose": len(records) - len(used),
        "labels_made_wrong_on_purpose": sum(true[record.image_id] != record.label for record in used),
    }


def _of_split(images: ImageSet, splits: Mapping[str, str], name: str) -> ImageSet:
    return images.subset([row for row, r in enumerate(images.records) if splits[r.image_id] == name])


def _statistics(images: ImageSet) -> tuple[float, float]:
    """Mean and standard deviation of the dequantised grey values, as shares of the full scale."""
    # From the histogram: exact, and without a copy of the images in float64.
    counts = np.zeros(2**images.bits, dtype=np.int64)
    for image in images.images:
        counts += np.bincount(image.ravel(), minlength=len(counts))
    shares = (np.arange(len(counts)) + 0.5) / len(counts)
    mean = float(counts @ shares / counts.sum())
    return mean, float(np.sqrt(counts @ np.square(shares - mean) / counts.sum()))


def _require_writable(path: Path) -> None:
    """Make the run directory. ConfigError if it cannot be written, or holds a run or what is none of ours."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        found = {entry.name for entry in path.iterdir() if entry.suffix != ".partial"}
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ConfigError(
            f"{path}: the run directory cannot be written ({error.strerror}).", "Name another one with --out."
        ) from error
    if found - UNFINISHED:
        raise ConfigError(
            f"{path}: the directory is not empty.", "Add --resume to go on with a run, or name a new one."
        )


def _judge_copies(audit: Mapping[str, Any], records: Sequence[Record]) -> None:
    """Equal images on both sides of a split: DataError where we drew the line, a warning where the publisher did."""
    official = {record.image_id: record.split for record in records}
    across = audit["same_pixels_across_splits"]
    for ids in across:
        if len({official[image_id] for image_id in ids}) == 1:
            raise DataError(
                f"{' and '.join(ids[:2])} are the same image, but would be in different splits "
                f"({len(across)} such groups in all).",
                "Remove the copies, or give them the same patient_id.",
            )
    if across:
        warnings.warn(
            f"{len(across)} images are in several official splits, first {' = '.join(across[0][:2])}: figures of the test "
            "split are too good by that. All are in audit.json.",
            stacklevel=3,
        )
    within = audit["same_pixels_within_split"]
    if within:
        warnings.warn(
            f"{len(within)} images occur more than once within a split, first {' = '.join(within[0][:2])}. "
            "All are in audit.json.",
            stacklevel=3,
        )


def _write_split(run: Run, records: Sequence[Record], splits: Mapping[str, str]) -> None:
    rows = [
        {
            "image_id": r.image_id,
            "patient_id": r.patient_id,
            "label": -1 if r.label is None else r.label,
            "split": splits[r.image_id],
            "view": r.view,
            "laterality": r.laterality,
            **r.extra,
        }
        for r in records
    ]
    pd.DataFrame(rows).to_parquet(run.path / "split.parquet", index=False)


def data_options(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Options of the data set, of all layers together."""
    options: dict[str, Any] = {}
    for layer in layers:
        options |= layer.get("data", {}).get("options") or {}
    return options
