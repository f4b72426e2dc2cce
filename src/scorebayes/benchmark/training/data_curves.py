"""Curves over the training data: how good the models are with few images, a rare class, or wrong labels.

Every point of a curve is one run per seed, in a separate directory under ``runs/benchmarks/curves/<benchmark>/``: our
model, and the baselines on the same images. Finished work is not repeated. The seed also draws the training subset. The
test split is complete at every point and is read once per run.

All models of a point get the same steps rule, the same validation images and the same class prior: that of the whole
training split, as if the prevalence were known. A subset with chosen class counts cannot show it.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from scorebayes.baselines import BASELINES
from scorebayes.benchmark.names import CONTROL, OURS, REFERENCE, WITHOUT_OURS, is_alone
from scorebayes.benchmark.shown.figures import COLOURS
from scorebayes.benchmark.training.seeds import BENCHMARKS, Benchmark, Outcome, pretrain, train_beside
from scorebayes.benchmark.training.summary import (
    add_mixtures,
    baseline_entry,
    leads,
    mixture_entries,
    mixtures,
    own_entry,
    part_entries,
    val_log_loss,
)
from scorebayes.data import open_source
from scorebayes.data.base import Record, SourceInfo
from scorebayes.data.split import largest_per_class, split_patients, subsample
from scorebayes.errors import ConfigError
from scorebayes.runs.device import environment
from scorebayes.runs.run import Run
from scorebayes.storage.atomic import write_atomically

CHEAPER, CHEAPER_PRESET = {"train": {"batch": 32, "val_images": 128}}, {"small": "light"}
MOST_STEPS = 1000
"""Cheaper than in the benchmarks, also for the baselines: a curve needs many trainings."""
LEAST_STEPS, LEAST_STEPS_FROM_START = 300, 100  # with labels: from scratch, and from a label-free start
FREE_STEPS = 600
"""Label-free steps on the whole training split, once for all points of a seed. They are part of our cost at every point."""
ASKED_OURS = "scorebayes"
"""The name of our model in --models. It is always needed, because the other models use its runs."""


@dataclass(frozen=True)
class Curve:
    """What a curve varies: its values (infinite: all there are), and how its figure names them."""

    values: tuple[float, ...]
    axis: str
    log_axis: bool = False


CURVES = {
    "per-class": Curve((5, 10, 25, 50, 100, math.inf), "training patients (or images) per class", True),
    "imbalance": Curve(
        (1, 3, 10, 30), "patients (or images) of the other class per one of the rare class", True
    ),
    "label-noise": Curve((0.0, 0.1, 0.2, 0.3, 0.4), "share of wrong training labels"),
}


@dataclass(frozen=True)
class Study:
    """One curve: what is varied over which values and seeds, and who takes part.

    models: "scorebayes" and names of baselines. quick: a trial of a few minutes, to see that everything works.
    scratch: our model starts from random weights; otherwise from label-free training on all images of the training
    split. The baselines cannot use it, and it is the same for all points of a seed.
    reduce_val: see ``config.DataConfig``; otherwise validation is the whole validation split.
    """

    name: str
    vary: str
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    models: tuple[str, ...] = (ASKED_OURS, "resnet18", "logistic")
    quick: bool = False
    reduce_val: bool = False
    scratch: bool = False

    def __post_init__(self) -> None:
        for what, given, known in (
            ("benchmark", [self.name], BENCHMARKS),
            ("curve", [self.vary], CURVES),
            ("model", self.models, (ASKED_OURS, *BASELINES)),
        ):
            for name in given:
                if name not in known:
                    raise ConfigError(f"unknown {what} {name!r}.", f"Known: {', '.join(known)}.")
        for value in self.values:
            counts = math.isinf(value) or float(value).is_integer()
            if not (counts if self.vary == "per-class" else math.isfinite(value)):
                raise ConfigError(f"{shown(value)} is not a value of the curve {self.vary!r}.")
        if ASKED_OURS not in self.models:
            raise ConfigError(
                f"the models {', '.join(self.models)} lack {ASKED_OURS!r}, which is always needed."
            )

    @property
    def title(self) -> str:
        """What its files are called."""
        variant = "-val-reduced" * self.reduce_val + "-scratch" * self.scratch + "-quick" * self.quick
        return f"{self.name}-{self.vary}{variant}"

    @property
    def command(self) -> str:
        """What makes it."""
        words = ["scorebayes benchmark data-curves", self.name, f"--vary {self.vary}"]
        if self.values != CURVES[self.vary].values:
            words.append(f"--values {','.join(map(shown, self.values))}")
        words += [f"--seeds {len(self.seeds)}", f"--models {','.join(self.models)}"]
        flags = {"--reduce-val": self.reduce_val, "--scratch": self.scratch, "--quick": self.quick}
        return " ".join(words + [flag for flag, on in flags.items() if on])

    @property
    def baselines(self) -> tuple[str, ...]:
        """The models besides ours."""
        return tuple(name for name in self.models if name != ASKED_OURS)

    @property
    def benchmark(self) -> Benchmark:
        """Source and budget."""
        budget = BENCHMARKS[self.name]
        free_steps = 0 if self.scratch else FREE_STEPS
        preset = CHEAPER_PRESET.get(budget.preset, budget.preset)
        budget = replace(
            budget,
            steps=min(budget.steps, MOST_STEPS),
            preset=preset,
            free_steps=free_steps,
            layer={**budget.layer, **CHEAPER},
        )
        return budget.quick() if self.quick else budget

    def steps(self, share: float) -> int:
        """Training steps with labels where only a share of the training images is used: all steps times sqrt(share), but
        not fewer than a least number.

        Few images are learned, and then overlearned, in fewer steps; the square root leaves each of them more passes.
        The baselines' networks get what costs as much, label-free steps included.
        """
        most = self.benchmark.steps - self.benchmark.free_steps
        return min(most, max(self.least_steps, round(most * math.sqrt(share))))

    @property
    def least_steps(self) -> int:
        """Of the steps with labels."""
        return LEAST_STEPS if self.scratch else LEAST_STEPS_FROM_START

    def start(self, source: str, runs: Path, seed: int) -> Run | None:
        """The label-free start of a seed, for all curves of the data set; None from scratch."""
        name = f"{self.name}-quick" if self.quick else self.name
        return pretrain(self.benchmark, source, runs / "curves" / "label-free" / name / f"seed-{seed}", seed)


def shown(value: float) -> str:
    """A value of a curve in words."""
    return "all" if math.isinf(value) else f"{value:g}"


def default_values(vary: str) -> tuple[float, ...]:
    """The values of a curve. ConfigError for an unknown one."""
    if vary not in CURVES:
        raise ConfigError(f"unknown curve {vary!r}.", f"Known: {', '.join(CURVES)}.")
    return CURVES[vary].values


def parse_values(text: str) -> tuple[float, ...]:
    """Numbers separated by commas; "all" is infinite. ConfigError for anything else."""
    try:
        return tuple(math.inf if part.strip() == "all" else float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--values {text}: expected numbers separated by commas.", "Write 5,10,all."
        ) from None


def measure_curve(study: Study, data_root: Path, runs: Path, results: Path, figures: Path) -> Path:
    """Train what is not trained yet; write ``<results>/<title>.json`` and the figure after every point.

    Returns the path of the JSON file. DataError if the data are absent or too few for a value.
    """
    world = _World.of(study, data_root, runs)
    points = []
    for value in study.values:
        folder = runs / "curves" / study.title / f"{study.vary}-{shown(value)}"
        outcomes: list[Outcome] = []
        for seed in study.seeds:
            tuned = outcomes[0].run if outcomes else None
            start = study.start(world.source, runs, seed)
            outcomes.append(_one_run(study, world, value, seed, folder / f"seed-{seed}", tuned, start))
        points.append(_point(study, world, value, outcomes))
        machine = environment(outcomes[0].run.device)
        content = {
            **_header(study, world.info, list(points[0]["models"])),
            "points": points,
            "environment": machine,
        }
        path = results / f"{study.title}.json"
        results.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content, indent=1) + "\n")
        draw_curve(content, figures / f"{study.title}.svg")
    return path


@dataclass(frozen=True)
class _World:
    """The data set of a study: its records, and for the imbalance the number per class that all ratios allow."""

    source: str
    info: SourceInfo
    records: Sequence[Record]
    per_class: int | None

    @staticmethod
    def of(study: Study, data_root: Path, runs: Path) -> _World:
        text = study.benchmark.located(data_root, runs)
        source = open_source(text)
        records = source.records()
        per_class = None
        if study.vary == "imbalance":
            # Also of the values that are not asked for, so that a point is the same whichever are.
            ratios = sorted({*study.values, *CURVES["imbalance"].values})
            per_class = min(
                largest_per_class(records, split_patients(records, seed=seed), ratios, source.info.positive)
                for seed in study.seeds
            )
        return _World(text, source.info, records, per_class)

    def options(self, study: Study, value: float) -> dict[str, Any]:
        """The fields of [data] for a value; none if the whole training split is used unchanged."""
        options: dict[str, Any] = {"reduce_val": study.reduce_val}
        if study.vary == "per-class" and not math.isinf(value):
            options["per_class"] = int(value)
        elif study.vary == "imbalance":
            options |= {"per_class": self.per_class, "imbalance": float(value)}
        elif study.vary == "label-noise":
            options["label_noise"] = float(value)
        return options


def _one_run(
    study: Study, world: _World, value: float, seed: int, path: Path, tuned: Run | None, start: Run | None
) -> Outcome:
    """Train, score and evaluate our model and the baselines at one value with one seed. ``tuned``: the run of the first
    seed, whose baselines' settings are taken over; ``start``: the weights that our model starts from."""
    benchmark = study.benchmark
    whole, used = (_train_records(world, seed, options) for options in ({}, world.options(study, value)))
    counts = Counter(record.label for record in whole)
    layer = {
        "data": world.options(study, value),
        "prior": {"kind": "given", "prob": [counts[y] / len(whole) for y in range(len(world.info.classes))]},
    }
    benchmark = replace(benchmark, baselines=study.baselines)
    layers = [*benchmark.layers(seed, study.steps(len(used) / len(whole)), start), layer]
    return train_beside(benchmark, world.source, path, layers, tuned)


def _train_records(world: _World, seed: int, options: Mapping[str, Any]) -> list[Record]:
    """The labelled training images of a run with these fields of [data]."""
    splits = split_patients(world.records, seed=seed)
    used = subsample(world.records, splits, **options, rare=world.info.positive, seed=seed)
    return [r for r in used if splits[r.image_id] == "train" and r.label is not None]


def _header(study: Study, info: SourceInfo, models: Sequence[str]) -> dict[str, Any]:
    free = study.benchmark.free_steps
    most = study.benchmark.steps - free
    begin = f"after {free} label-free ones on the whole training split" if free else "from scratch"
    rule = f"{most} * sqrt(share of the training images used), at least {min(study.least_steps, most)}"
    return {
        "benchmark": study.name,
        "vary": study.vary,
        "command": study.command,
        "quick": study.quick,
        "seeds": list(study.seeds),
        "models": models,
        "classes": list(info.classes),
        "rare_class": info.classes[info.positive],
        "validation": "reduced like the training split" if study.reduce_val else "whole",
        "prior": "class shares of the whole training split",
        "label_free_steps": free,
        "steps_rule": f"{rule}, {begin}",
        "written": time.strftime("%Y-%m-%d"),
    }


def _point(study: Study, world: _World, value: float, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    runs = [outcome.run for outcome in outcomes]
    used = [_train_records(world, seed, world.options(study, value)) for seed in study.seeds]
    models = {OURS: own_entry(runs, [outcome.metrics for outcome in outcomes])}
    models |= part_entries([outcome.answers for outcome in outcomes])
    models |= {name: baseline_entry(outcomes, name) for name in study.baselines}
    mixed = mixtures({name: val_log_loss(outcomes, name) for name in study.baselines})
    each = add_mixtures([outcome.answers for outcome in outcomes], mixed)
    models |= mixture_entries(each, mixed, {name: models[name]["cost"] for name in (OURS, *study.baselines)})
    paired = {OURS: leads(each, OURS, study.baselines)}
    for name, without in WITHOUT_OURS.items():
        if name in mixed:
            rivals = {REFERENCE, without} & each[0].prob.keys()
            paired[name] = leads(each, name, sorted(rivals))
    return {
        "value": None if math.isinf(value) else value,
        "shown": shown(value),
        "train_patients": [len({r.patient_id or r.image_id for r in records}) for records in used],
        "train_images": [sum(run.facts.train_counts) for run in runs],
        "train_images_per_class": [list(run.facts.train_counts) for run in runs],
        "val_images": [int((run.split["split"] == "val").sum()) for run in runs],
        "test_images": [len(answers.labels) for answers in each],
        "steps": [run.config.train.steps for run in runs],
        "mixtures": mixed,
        "models": models,
        "paired": paired,
    }


def draw_curve(measured: Mapping[str, Any], path: Path) -> None:
    """The figure of a curve as SVG: AUC with the range over the seeds, and the lead of our generative model over each rival
    (of its mixtures over what they are without ours) with its interval."""
    curve, points = CURVES[measured["vary"]], measured["points"]
    n_classes = len(measured["classes"])
    # "All" stands where its number of patients is.
    x = [p["value"] if p["value"] is not None else np.mean(p["train_patients"]) / n_classes for p in points]
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "scorebayes", "font.size": 9}
    with rc_context(style):
        figure = Figure(figsize=(9.5, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        right.axhline(0, color="#66707a", linewidth=1)
        for name, colour in zip(measured["models"], COLOURS, strict=False):
            found = [point["models"][name]["test"]["auc"] for point in points]
            left.plot(x, [f["mean"] for f in found], marker="o", markersize=4, color=colour, label=name)
            low, high = zip(*((min(f["values"]), max(f["values"])) for f in found), strict=True)
            left.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            if name not in (OURS, CONTROL) and not is_alone(name):
                ours, rival = (name, WITHOUT_OURS[name]) if name in WITHOUT_OURS else (OURS, name)
                ahead = [point["paired"][ours][rival] for point in points]
                low, high = zip(*(lead["auc_difference_ci95"] for lead in ahead), strict=True)
                right.plot(
                    x,
                    [lead["auc_difference"] for lead in ahead],
                    marker="o",
                    markersize=4,
                    color=colour,
                    label=f"{ours} minus {rival}",
                )
                right.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        n_seeds = len(measured["seeds"])
        left.set_title(f"test AUC, mean and range of {n_seeds} seed{'s' * (n_seeds > 1)}")
        right.set_title("AUC minus rival's, 95 % interval")
        for axes in (left, right):
            axes.set_xlabel(curve.axis)
            if curve.log_axis:
                axes.set_xscale("log")
            axes.set_xticks(x, [point["shown"] for point in points])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        left.legend(fontsize=8)
        if right.get_legend_handles_labels()[0]:  # ours has a rival
            right.legend(fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
