"""The posteriors of a benchmark's models for every test image, in the file ``<name>-posteriors.parquet``.

With it, a model that was trained elsewhere or later is compared on the same images without training the others again.
One row per model, seed and image: ``model``, ``seed``, ``image_id``, ``patient_id`` (the image's where there is none),
``label`` and ``prob_<class>`` of every class. It holds no pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scorebayes.benchmark.stored.answers import Answers
from scorebayes.storage.atomic import replacing

Said = Mapping[tuple[str, int], pd.DataFrame]
"""Rows by model and seed, each with the image id as its index."""


def posteriors_path(results: Path) -> Path:
    """The posteriors file next to a benchmark's JSON file."""
    return results.with_name(f"{results.stem}-posteriors.parquet")


def write_posteriors(
    path: Path, seeds: Sequence[int], each: Sequence[Answers], models: Sequence[str], classes: Sequence[str]
) -> None:
    """Write the posteriors of all models and seeds to one file, completely or not at all."""
    names = np.asarray(classes, dtype=object)
    rows = [
        pd.DataFrame(
            {
                "model": model,
                "seed": seed,
                "image_id": answers.images,
                "patient_id": answers.groups,
                "label": names[answers.labels],
                **{f"prob_{c}": answers.prob[model][:, y].astype(np.float32) for y, c in enumerate(classes)},
            }
        )
        for model in models
        for seed, answers in zip(seeds, each, strict=True)
    ]
    with replacing(path) as partial:
        pd.concat(rows, ignore_index=True).to_parquet(partial, compression="zstd", index=False)


def class_indices(labels: pd.Series, classes: Sequence[str]) -> NDArray[np.int64]:
    """Names of classes -> their indices [N]."""
    return labels.map({name: y for y, name in enumerate(classes)}).to_numpy(np.int64)


def read_posteriors(path: Path) -> Said:
    """Nothing where there is no file."""
    if not path.exists():
        return {}
    frame = pd.read_parquet(path)
    return {
        (str(model), int(seed)): rows.set_index("image_id")
        for (model, seed), rows in frame.groupby(["model", "seed"], sort=False)
    }
