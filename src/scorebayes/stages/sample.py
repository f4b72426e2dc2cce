"""Pictures of a run: samples of every class, each with its nearest training image (memorisation check)."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import torch

from scorebayes.diffusion.sample import SAMPLERS, guide, nearest
from scorebayes.progress import progress_bar
from scorebayes.runs.config import build_kind
from scorebayes.runs.run import Run
from scorebayes.storage.arrays import write_arrays
from scorebayes.storage.atomic import replacing

LEAST_WIDTH = 4.0  # inches: what the title needs
LONGEST_LINE = 22  # letters that fit beside a picture
TRAINING_IMAGES = 20_000  # looked through for the nearest; a random part of larger sets


def draw_samples(
    run: Run,
    per_class: int = 4,
    sampler: str = "second-order",
    steps: int | None = None,
    guidance: float = 0.0,
) -> tuple[Path, dict[str, float]]:
    """Write ``samples.png`` (a grid, class by class) and ``samples.npz``. Returns the path of the picture and, for
    each class, the smallest distance of a sample to its nearest training image."""
    draw = build_kind("sampler", sampler, SAMPLERS, {} if steps is None else {"steps": steps})
    score = guide(run.score, guidance)
    shape = (run.config.prepare.channels, run.config.prepare.size, run.config.prepare.size)
    generator = torch.Generator().manual_seed(run.config.seed)
    samples = []
    with progress_bar("sample", len(run.facts.classes)) as advance, torch.no_grad():
        for y in range(len(run.facts.classes)):
            samples.append(draw(score, torch.full((per_class,), y), shape, generator))
            advance(y + 1, run.facts.classes[y])
    drawn = torch.cat(samples)
    known = run.standardise(run.images("train").drawn(TRAINING_IMAGES, run.config.seed).images)
    index, distance = nearest(drawn, known)
    images, neighbours = run.restore(drawn), run.restore(known[index])
    labels = np.repeat(np.arange(len(run.facts.classes)), per_class)
    arrays: dict[str, np.ndarray] = {
        "images": images,
        "labels": labels,
        "nearest": neighbours,
        "distance": distance.numpy(),
    }
    write_arrays(run.path / "samples.npz", arrays)
    path = _grid(run, images, neighbours, labels, distance.numpy())
    return path, {
        name: float(distance.numpy()[labels == y].min()) for y, name in enumerate(run.facts.classes)
    }


def _grid(
    run: Run, images: np.ndarray, neighbours: np.ndarray, labels: np.ndarray, distance: np.ndarray
) -> Path:
    from matplotlib.figure import Figure

    classes = run.facts.classes
    columns = int((labels == 0).sum())
    figure = Figure(
        figsize=(max(1.4 * columns + 0.6, LEAST_WIDTH), 2.9 * len(classes) + 0.5), layout="constrained"
    )
    axes = figure.subplots(2 * len(classes), columns, squeeze=False)
    for cell, (image, neighbour, y, apart) in enumerate(
        zip(images, neighbours, labels, distance, strict=True)
    ):
        for offset, picture in enumerate((image, neighbour)):
            axis = axes[2 * y + offset, cell % columns]
            axis.imshow(
                picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1
            )
            axis.set_xticks([])
            axis.set_yticks([])
        axis.set_xlabel(f"{apart:.2f}", fontsize=7)
        if cell % columns == 0:
            axes[2 * y, 0].set_ylabel(
                f"{textwrap.fill(classes[y], LONGEST_LINE)}\nsample", fontsize=8, parse_math=False
            )
            axes[2 * y + 1, 0].set_ylabel("nearest\nin training", fontsize=8)
    data = " (synthetic data)" if run.facts.info.synthetic else ""
    figure.suptitle(
        f"Samples by class{data}.\nBelow each: the nearest training image, and its distance", fontsize=8
    )
    path = run.path / "samples.png"
    with replacing(path) as partial:
        figure.savefig(partial, dpi=130, format="png")
    return path
