"""How a segmentation run begins: from a data source to a run directory with its images, split by patient."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from scorebayes.data import open_mask_source
from scorebayes.data.split import copies_of, leakage_audit, split_patients
from scorebayes.errors import DataError
from scorebayes.runs.inputs import data_options, grey_statistics, new_directory
from scorebayes.runs.run import write_quarantine
from scorebayes.segmentation.config import resolve_masks
from scorebayes.segmentation.examples import MaskedSet, oddities, read_all, suggest
from scorebayes.segmentation.run import MaskFacts, MaskRun, create_mask_run
from scorebayes.storage import sealed


def start_mask_run(
    path: Path, data: str, layers: Sequence[Mapping[str, Any]], preset: str, device: torch.device
) -> tuple[MaskRun, dict[str, MaskedSet]]:
    """A new run directory and its images by split ("train" and "val").

    Official splits are kept; otherwise images are divided by patient and, where nobody names the patients, with their
    copies. ConfigError if the directory holds something else, DataError if the data cannot be used.
    """
    with new_directory(path):
        return _started(path, data, layers, preset, device)


def _started(
    path: Path, data: str, layers: Sequence[Mapping[str, Any]], preset: str, device: torch.device
) -> tuple[MaskRun, dict[str, MaskedSet]]:
    options = data_options(layers)
    source = open_mask_source(data, **options)
    records = source.records()
    given = {"data": {"source": data, "options": options or None}}
    config = resolve_masks(*layers, given, preset=preset, defaults=suggest(source, records))
    found, rejected = read_all(path, config, source, records, options)
    if not len(found):
        reason = f" ({rejected[0].reason})" if rejected else ""
        raise DataError(
            f"{source.info.title}: no image with a mask can be used{reason}.", "Look at the files."
        )
    images = found.images
    splits = split_patients(
        images.records,
        fractions=config.data.fractions,
        seed=config.seed,
        copies=copies_of(images.records, images.images),
    )
    by_split = {
        name: found.subset([row for row, key in enumerate(found.keys) if splits[key] == name])
        for name in ("train", "val")
    }
    for name, of in by_split.items():
        if not len(of):
            raise DataError(f"{source.info.title}: no usable image in the {name} split.", "Give more images.")
    mean, std = grey_statistics(by_split["train"].images)
    run = MaskRun(path, config, MaskFacts(source.info, mean, std), device)
    table = [
        {"image_id": r.image_id, "patient_id": r.patient_id, "split": splits[r.image_id]}
        for r in images.records
    ]
    with sealed.replacing(path / "split.parquet") as partial:
        pd.DataFrame(table).to_parquet(partial, index=False)
    audit = leakage_audit(images.records, splits, images.images)
    across = audit["same_pixels_across_splits"]
    if across:
        warnings.warn(
            f"{len(across)} images are in more than one split, for example {' = '.join(across[0][:2])}. Test results are "
            "therefore too optimistic. audit.json lists all of them.",
            stacklevel=2,
        )
    run.write_json("audit.json", {**audit, "masks": oddities(found), "notes": list(source.notes)})
    left_out = [*source.rejected, *rejected]
    write_quarantine(path / "quarantine.csv", left_out)
    create_mask_run(run)
    if left_out:
        warnings.warn(
            f"{len(left_out)} images were left out; see {path / 'quarantine.csv'} for the reasons, the first is: "
            f"{left_out[0].reason}",
            stacklevel=2,
        )
    return run, by_split
