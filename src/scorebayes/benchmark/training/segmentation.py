"""Segmentation over seeds: our model and plain segmenters on the same images, augmentation, steps and loop.

Everything is chosen on training and validation images; the test images are read once, here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scorebayes.runs.device import environment, pick_device
from scorebayes.segmentation.figures import RULE, bootstrap, each_image
from scorebayes.segmentation.run import MaskRun
from scorebayes.segmentation.segmenters import (
    decision_of,
    fit_segmenter,
    judge_segmenter,
    our_cost,
    segment_split,
)
from scorebayes.segmentation.stages import evaluate_masks, insides, score_masks, train_masks
from scorebayes.storage.atomic import write_atomically

OURS = "scorebayes"
QUICK_STEPS = 30
AVERAGED = (
    *(
        "dice",
        "iou",
        "hd95",
        "asd",
        "dice_with_empty",
        "empty_found_empty",
        "missed",
        "pixel_ece",
        "pixel_log_loss",
    ),
    *("coverage", "coverage_by_samples", "area_interval_width", "area_error"),
)
"""Figures that are given as a mean over the seeds with every value."""


@dataclass(frozen=True)
class MaskBenchmark:
    """data: as ``open_mask_source`` takes it, with {root}. steps, preset: of every model. layer: more of the configuration.
    segmenters: what we compare with."""

    data: str
    steps: int
    preset: str
    layer: Mapping[str, Any] = field(default_factory=dict)
    segmenters: tuple[str, ...] = ("unet",)


STUDIES = {
    "segmentation-busi": MaskBenchmark("busi:{root}/busi", 1000, "small", {"prepare": {"size": 64}}),
    "segmentation-phantom": MaskBenchmark("phantom:n_patients=200,views=1,size=64", 600, "light"),
}


def run_mask_benchmark(
    name: str,
    data_root: Path,
    runs: Path,
    out: Path,
    seeds: Sequence[int],
    *,
    segmenters: Sequence[str] | None = None,
    steps: int | None = None,
    quick: bool = False,
) -> Path:
    """Train, score and judge all models over the seeds; what is there is not made again. Returns the JSON file."""
    benchmark = STUDIES[name]
    names = benchmark.segmenters if segmenters is None else tuple(segmenters)
    steps = QUICK_STEPS if quick else steps or benchmark.steps
    title = f"{name}-quick" if quick else name
    found = [_one_seed(benchmark, title, data_root, runs, seed, names, steps, quick) for seed in seeds]
    models = {model: _over_seeds([of["models"][model] for of in found]) for model in (OURS, *names)}
    result = {
        "benchmark": name,
        "data": found[0]["data"],
        "synthetic": found[0]["synthetic"],
        "quick": quick,
        "steps": steps,
        "seeds": list(seeds),
        "rule": RULE,
        "models": models,
        "paired": {
            OURS: {
                rival: _paired([of["dice"][OURS] - of["dice"][rival] for of in found], found)
                for rival in names
            }
        },
        "environment": environment(pick_device("cpu")),
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{title}.json"
    write_atomically(path, json.dumps(result, indent=1, default=str) + "\n")
    return path


def _one_seed(
    benchmark: MaskBenchmark,
    title: str,
    data_root: Path,
    runs: Path,
    seed: int,
    names: Sequence[str],
    steps: int,
    quick: bool,
) -> dict[str, Any]:
    path = runs / title / f"seed-{seed}"
    layers = [benchmark.layer, {"seed": seed, "train": {"steps": steps}}]
    preset = "tiny" if quick else benchmark.preset
    data = benchmark.data.format(root=data_root.resolve())
    run = train_masks(path, data, layers, preset, pick_device("cpu"), resume=path.exists())
    score_masks(run, "test")
    models = {OURS: {**evaluate_masks(run, "test"), "step_multiply_adds": our_cost(run)}}
    dice = {OURS: pd.read_csv(path / "cases-test.csv")["dice"].to_numpy()}
    for name in names:
        fit_segmenter(run, name)
        models[name] = judge_segmenter(run, name, "test")
        dice[name] = _dice_of(run, name)
    return {
        "models": models,
        "dice": dice,
        "keys": tuple(run.split.query("split == 'test'")["image_id"]),
        "data": run.facts.info.title,
        "synthetic": run.facts.info.synthetic,
    }


def _dice_of(run: MaskRun, name: str) -> NDArray[np.float64]:
    found = run.examples("test")
    drawn, decision = segment_split(run, name, "test"), decision_of(run, name)
    return each_image(drawn, decision, found.masks, insides(found.frames))["dice"]


def _over_seeds(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds, with the value of every seed; cost of the last one."""
    test = {}
    for name in AVERAGED:
        values = [of.get(name) for of in each]
        known = [value for value in values if value is not None]
        test[name] = {"mean": float(np.mean(known)) if known else None, "values": values}
    last = each[-1]
    return {
        "test": {**test, "images": last["images"], "with_object": last["with_object"]},
        "evaluations": last["evaluations"],
        "samples": last["samples"],
        "seconds_per_image": float(np.mean([of["seconds_per_image"] for of in each])),
        "step_multiply_adds": last["step_multiply_adds"],
    }


def _paired(differences: Sequence[NDArray[np.float64]], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of Dice by image, ours minus the other's, with a bootstrap interval over the images: averaged over the seeds where all
    have the same test images (an official split), else laid end to end."""
    same = len({of["keys"] for of in found}) == 1
    by_image = np.mean(differences, axis=0) if same else np.concatenate(differences)
    by_image = by_image[~np.isnan(by_image)]
    return {
        "dice_difference": float(by_image.mean()) if len(by_image) else None,
        "ci95": bootstrap(by_image),
        "images": len(by_image),
    }
