"""One seed of a benchmark: our model trained, scored and evaluated, and the baselines on the same images.

Every seed has its own run directory under ``runs/benchmarks/<name>/``. Finished work is not repeated.
All choices are made on training and validation images; the test split is read once per seed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scorebayes.baselines import BASELINES, fit_baseline, predict_baseline, read_predictions
from scorebayes.benchmark.names import MORE, OURS, alone
from scorebayes.benchmark.stored.answers import Answers
from scorebayes.benchmark.stored.posteriors import class_indices
from scorebayes.benchmark.training.cbis_128 import cbis_128
from scorebayes.decision.calibration import fit_calibration
from scorebayes.decision.posterior import bayes
from scorebayes.errors import DataError
from scorebayes.runs.device import pick_device
from scorebayes.runs.run import Run
from scorebayes.stages import train as stages
from scorebayes.stages.evaluate import evaluate
from scorebayes.stages.score import read_table, score_split
from scorebayes.storage.spreadsheet import plain

QUICK_STEPS, QUICK_NETWORK_STEPS = 200, 5


MORE_LIKELIHOOD: Mapping[str, Any] = {"levels": 8, "repeats": 4}
"""[likelihood] of the variant that spends more on an image (``MORE``): the same weights, 64 evaluations, generative as
well. The hybrid loss was tried in its place and lost on held-out training images (docs/decisions/0008)."""


@dataclass(frozen=True)
class Benchmark:
    """A data set under the data root, the budget every seed gets, and the baselines that are compared with.

    source: KIND:PATH, with {root} for the data root; or what makes such a file of the data root in a folder and says so.
    network_steps: of the baselines' networks; None: what costs as many multiply-adds as the training of our model.
    free_steps: how many of our steps use no label: they see all images of the training split (``pretrain``), and the
    others start from there; 0: all use labels. layer: configuration that differs from the preset's. more: [likelihood] of a
    variant that spends more on an image; None: there is none.
    """

    source: str | Callable[[Path, Path], str]
    steps: int = 1000
    preset: str = "small"
    baselines: tuple[str, ...] = tuple(name for name, kind in BASELINES.items() if not kind.pretrained)
    network_steps: int | None = None
    free_steps: int = 0
    layer: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] | None = field(default_factory=lambda: dict(MORE_LIKELIHOOD))

    def located(self, data_root: Path, runs: Path) -> str:
        """KIND:PATH of the data. DataError where they are missing."""
        if not isinstance(self.source, str):
            return self.source(data_root, runs / "data")
        source = self.source.format(root=data_root.resolve())
        if source != self.source and not Path(source.partition(":")[2]).exists():
            raise DataError(
                f"{source.partition(':')[2]}: no such file.", "Name the data root with --data-root."
            )
        return source

    def quick(self) -> Benchmark:
        """A try of a few minutes, to see that all works: its figures mean nothing."""
        return replace(
            self,
            steps=min(self.steps, QUICK_STEPS),
            free_steps=min(self.free_steps, QUICK_STEPS // 2),
            preset="tiny",
            network_steps=QUICK_NETWORK_STEPS,
        )

    def layers(self, seed: int, steps: int, start: Run | None) -> list[Mapping[str, Any]]:
        """The configuration of ``steps`` steps with labels, from a label-free start where there is one."""
        begin = {} if start is None else {"init": str(start.path.resolve()), **FROM_LABEL_FREE}
        return [self.layer, {"seed": seed, "train": {"steps": steps, **begin}}]


ON_FEATURES = {
    "prepare": {"size": 224},
    "evidence": {"sources": ["features", "wavelets", "pooled"]},
}
"""At real resolution, on the features of a pretrained encoder: never to be mixed with models from random weights."""

FROM_LABEL_FREE = {"lr": 1e-3, "warmup": 20, "validate_every": 50}
"""[train] where the weights are good already and the labels are to be learned (docs/decisions/0009)."""

ON_SAME_FEATURES = ("logistic-on-features", "logistic-on-statistics", "fine-tuned", "fine-tuned-last-block")
"""The baselines that start from the same encoder."""

BENCHMARKS = {
    "breastmnist": Benchmark("medmnist:{root}/medmnist/breastmnist.npz"),
    "pneumoniamnist": Benchmark("medmnist:{root}/medmnist/pneumoniamnist.npz", steps=2000),
    "ddsm64": Benchmark("ddsm64:{root}/ddsm64", steps=3000, preset="light", layer={"net": {"patch": 4}}),
    "phantom": Benchmark("phantom", steps=1500, preset="tiny"),
    "breastmnist-224": Benchmark(
        "medmnist:{root}/busi/breastmnist_224.npz",
        steps=750,
        baselines=ON_SAME_FEATURES,
        layer=ON_FEATURES,
        more=None,
    ),
    "cbis-128": Benchmark(
        cbis_128,
        steps=750,
        baselines=ON_SAME_FEATURES,
        layer={**ON_FEATURES, "prepare": {"steps": ["robust-window"]}},
        more=None,
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What one seed came to: its run, the run's metrics with those of the baselines in them, and the answers of all.

    more_metrics: of the same weights with more evaluations (``MORE``); empty where they were not asked for.
    """

    run: Run
    metrics: Mapping[str, Any]
    answers: Answers
    more_metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def baselines(self) -> dict[str, Mapping[str, Any]]:
        """Metrics of the baselines by name."""
        return {entry["name"]: entry for entry in self.metrics["baselines"].values()}


def one_seed(benchmark: Benchmark, source: str, path: Path, seed: int, tuned: Run | None) -> Outcome:
    """The run with its baselines, and the same weights with more evaluations. ``tuned``: the first seed's run, whose
    baselines' settings are taken over; our own settings are the same for all seeds, too."""
    start = pretrain(benchmark, source, path.with_name(f"{path.name}-label-free"), seed)
    layers = benchmark.layers(seed, benchmark.steps - benchmark.free_steps, start)
    outcome = train_beside(benchmark, source, path, layers, tuned)
    if benchmark.more is None:
        return outcome
    more_path = path.with_name(f"{path.name}-more")
    if not more_path.exists():
        partial = path.with_name(f"{path.name}-partial")
        shutil.copytree(
            path, partial, ignore=shutil.ignore_patterns("baselines", "*-val*", "*-test*"), dirs_exist_ok=True
        )
        partial.rename(more_path)
    more_layers = [*layers, {"likelihood": benchmark.more}]
    more = stages.train(more_path, source, more_layers, benchmark.preset, pick_device(), resume=True)
    score_split(more, "test")
    metrics = evaluate(more, "test")
    answers = outcome.answers.with_models({MORE: _own_answers(more).prob[OURS]})
    return replace(outcome, answers=answers, more_metrics=metrics)


def baselines_of_seed(benchmark: Benchmark, source: str, path: Path, seed: int, tuned: Run | None) -> Run:
    """The benchmark's baselines alone, in a run that is only begun: it has its split, and its score is not trained.

    ``tuned``: as of ``one_seed``.
    """
    layers = benchmark.layers(seed, benchmark.steps, None)
    run, _ = stages.begin(path, source, layers, benchmark.preset, pick_device(), resume=path.exists())
    _fit_baselines(run, benchmark, tuned)
    return run


def beside(measured: Answers, run: Run, names: Sequence[str]) -> Outcome:
    """Fitted baselines of a run beside what ours was measured to say, elsewhere or before. DataError where that was of
    other test images."""
    if set(measured.images) - set(run.split.loc[run.split["split"] == "test", "image_id"]):
        raise DataError(f"{run.path}: our model was measured on other test images.", "Leave out --keep-ours.")
    answers = _with_baselines(measured, run, names)
    metrics = {
        name: {
            "name": name,
            **answers.metrics(name),
            "seconds_per_image": float(_predictions(run, name)["seconds"].mean()),
        }
        for name in names
    }
    return Outcome(run, {"baselines": metrics}, answers)


def pretrain(benchmark: Benchmark, source: str, path: Path, seed: int) -> Run | None:
    """The label-free start of a seed, from all images of its training split; None where the benchmark has none."""
    if not benchmark.free_steps:
        return None
    layers = [benchmark.layer, {"seed": seed, "train": {"steps": benchmark.free_steps, "null_label": 1.0}}]
    return stages.train(path, source, layers, benchmark.preset, pick_device(), resume=path.exists())


def train_beside(
    benchmark: Benchmark, source: str, path: Path, layers: Sequence[Mapping[str, Any]], tuned: Run | None
) -> Outcome:
    """Train, score and evaluate our model, and the benchmark's baselines on the same images. ``tuned``: see
    ``fit_baseline``."""
    run = stages.train(path, source, layers, benchmark.preset, pick_device(), resume=path.exists())
    score_split(run, "test")
    _fit_baselines(run, benchmark, tuned)
    metrics = evaluate(run, "test")
    answers = _own_answers(run).with_models(_parts_alone(run))
    names = [entry["name"] for entry in metrics["baselines"].values()]
    return Outcome(run, metrics, _with_baselines(answers, run, names))


def _fit_baselines(run: Run, benchmark: Benchmark, tuned: Run | None) -> None:
    """And have them predict."""
    for name in benchmark.baselines:
        fit_baseline(run, name, benchmark.network_steps, tuned=tuned)
        for split in ("val", "test"):
            predict_baseline(run, name, split)


def _with_baselines(answers: Answers, run: Run, names: Sequence[str]) -> Answers:
    """The answers with those of fitted baselines on the same images."""
    images, columns = list(answers.images), _columns(run)
    return answers.with_models(
        {name: _predictions(run, name).loc[images, columns].to_numpy(np.float64) for name in names}
    )


def _predictions(run: Run, name: str) -> pd.DataFrame:
    """Of a baseline that has predicted the test split."""
    frame = read_predictions(run, name, "test")
    assert frame is not None
    return frame


def _own_answers(run: Run) -> Answers:
    """The stored posteriors of a run, for the images that it could answer."""
    own = pd.read_csv(run.path / "predictions-test.csv", keep_default_na=False, dtype=str)
    own = own[own["status"] == "ok"]
    images = own["image_id"].map(plain)
    labels = class_indices(own["label"], run.facts.classes)
    groups = own["patient_id"].where(own["patient_id"] != "", images)
    prob = {OURS: own[_columns(run)].to_numpy(np.float64)}
    return Answers(labels, tuple(images), tuple(groups), prob, run.facts.info.positive)


def _parts_alone(run: Run) -> dict[str, NDArray[np.float64]]:
    """Posteriors of the images that could be answered, by each source of evidence alone; none where there is one source."""
    sources = run.asked(run.likelihood)
    if len(sources) < 2:
        return {}
    val, test = (read_table(run, split).usable() for split in ("val", "test"))
    found = {}
    for name in sources:
        calibration = fit_calibration(val.alone(name), val.log_shares, seed=run.config.seed)
        found[alone(name)] = bayes(test.alone(name), run.log_prior, calibration).prob
    return found


def _columns(run: Run) -> list[str]:
    return [f"prob_{name}" for name in run.facts.classes]
