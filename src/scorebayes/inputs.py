"""From a data source to the prepared images of a run, split by patient.

``start_run`` makes a run directory from a source, ``resume_run`` checks that one still fits, ``load_split`` reads the
images of a split again (from the run's cache) for the later stages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from scorebayes.config import Config, resolve
from scorebayes.data import open_source
from scorebayes.data.base import Record, Source
from scorebayes.data.load import ImageSet, load
from scorebayes.data.split import leakage_audit, split_patients
from scorebayes.errors import ConfigError, DataError
from scorebayes.progress import progress_bar
from scorebayes.run import Facts, Run, create_run

LARGEST_DEFAULT_SIZE = 64
WORKERS_ABOVE = 200  # images; below, starting processes costs more than it brings


def suggest(source: Source, records: Sequence[Record]) -> dict[str, Any]:
    """What a data set implies for the configuration: image size, channels and bit depth."""
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
            }
        }
    raise DataError(f"{source.info.title}: none of the {len(records)} images can be read.")


def start_run(
    path: Path, data: str, layers: Sequence[Mapping[str, Any]], preset: str, device: torch.device
) -> tuple[Run, dict[str, ImageSet]]:
    """A new run directory and its images by split ("train" and "val").

    Raises ConfigError if the directory holds something already, DataError if the data cannot be used.
    """
    if path.exists() and any(path.iterdir()):
        raise ConfigError(
            f"{path}: the directory is not empty.", "Add --resume to go on with a run, or name a new one."
        )
    options = _options(layers)
    source = open_source(data, **options)
    records = source.records()
    config = resolve(*layers, {"data": {"source": data}}, preset=preset, defaults=suggest(source, records))
    splits = split_patients(records, fractions=config.data.fractions, seed=config.seed)
    path.mkdir(parents=True, exist_ok=True)
    images, rejected = _load(source, records, config, path)
    by_split = {name: _of_split(images, splits, name) for name in ("train", "val", "test")}
    if not len(by_split["train"]):
        raise DataError(
            f"{source.info.title}: no usable image in the training split.",
            "See the reasons: scorebayes data check.",
        )
    mean, std = _statistics(by_split["train"])
    counts = np.bincount(by_split["train"].labels, minlength=len(source.info.classes))
    run = create_run(path, config, Facts(source.info, mean, std, tuple(int(n) for n in counts)), device)
    _write_split(run, images.records, splits)
    run.write_json("audit.json", leakage_audit(images.records, splits, images.images))
    run.quarantine([*source.rejected, *rejected])
    return run, by_split


def load_split(run: Run, split: str) -> ImageSet:
    """The images of a split, as the run's ``split.parquet`` lists them. DataError if the data have changed since."""
    stored = run.split.query("split == @split")
    if stored.empty:
        raise DataError(
            f"{run.path}: the split {split!r} has no image.",
            f"It has {', '.join(sorted(run.split['split'].unique()))}.",
        )
    source = open_source(run.config.data.source, **(run.config.data.options or {}))
    wanted = set(stored["image_id"])
    records = [record for record in source.records() if record.image_id in wanted]
    images, rejected = _load(source, records, run.config, run.path)
    missing = wanted - set(images.keys)
    if missing:
        reason = rejected[0].reason if rejected else "it is not in the data set any more"
        raise DataError(
            f"{len(missing)} images of the split {split!r} cannot be read any more, first {min(missing)}: {reason}.",
            "Restore the data, or train a new run.",
        )
    return images


def absolute_source(data: str) -> str:
    """KIND:PATH with the path made absolute, so that the run can be used from any folder."""
    kind, colon, rest = data.partition(":")
    return f"{kind}:{Path(rest).resolve()}" if colon and Path(rest).exists() else data


def _load(source: Source, records: Sequence[Record], config: Config, path: Path):
    workers = (os.cpu_count() or 1) if len(records) > WORKERS_ABOVE else 0
    with progress_bar("prepare", len(records)) as advance:
        return load(
            source, records, config.prepare, cache=path / "cache", workers=workers,
            progress=lambda done, total: advance(done, ""),
        )  # fmt: skip


def _of_split(images: ImageSet, splits: Mapping[str, str], name: str) -> ImageSet:
    return images.subset(
        [row for row, r in enumerate(images.records) if splits[r.image_id] == name and r.label is not None]
    )


def _statistics(images: ImageSet) -> tuple[float, float]:
    """Mean and standard deviation of the dequantised grey values, as shares of the full scale."""
    shares = (images.images.astype(np.float64) + 0.5) / 2.0**images.bits
    return float(shares.mean()), float(shares.std())


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


def _options(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for layer in layers:
        options |= layer.get("data", {}).get("options", {})
    return options
