"""Benchmarks: train, score and evaluate over seeds, and sum the results up in one JSON file.

Every seed has a run directory of its own under ``runs/benchmarks/<name>/``; what is finished there is not done again.
All choices are made on training and validation images; the test split is read once per seed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from scorebayes import stages
from scorebayes.checkpoint import write_atomically
from scorebayes.errors import DataError
from scorebayes.evaluate import evaluate
from scorebayes.metrics import classification_metrics
from scorebayes.run import Run, environment, pick_device
from scorebayes.scoring import score_split

METRICS = (
    "auc", "accuracy", "balanced_accuracy", "sensitivity_at_90_specificity", "log_loss", "brier", "ece",
)  # fmt: skip
OURS = "scorebayes-generative"
ENSEMBLE = "scorebayes-generative-ensemble"


@dataclass(frozen=True)
class Benchmark:
    """A data set under the data root, and the budget every seed gets."""

    source: str
    steps: int = 3000
    preset: str = "small"


BENCHMARKS = {
    "breastmnist": Benchmark("medmnist:{root}/medmnist/breastmnist.npz"),
    "pneumoniamnist": Benchmark("medmnist:{root}/medmnist/pneumoniamnist.npz"),
    "phantom": Benchmark("phantom", steps=1500, preset="tiny"),
}


def run_benchmark(name: str, data_root: Path, runs: Path, results: Path, seeds: Sequence[int]) -> Path:
    """Run a benchmark over seeds and write ``<results>/<name>.json``. DataError if the data are absent."""
    benchmark = BENCHMARKS[name]
    source = benchmark.source.format(root=data_root.resolve())
    if source != benchmark.source and not Path(source.partition(":")[2]).exists():
        raise DataError(f"{source.partition(':')[2]}: no such file.", "Name the data root with --data-root.")
    done = [_one_seed(benchmark, source, runs / name / f"seed-{seed}", seed) for seed in seeds]
    models: dict[str, Any] = {OURS: _summary([metrics for _, metrics in done])}
    models[OURS]["training_seconds"] = [_training_seconds(run) for run, _ in done]
    ensemble = _ensemble([run for run, _ in done])
    if ensemble:
        models[ENSEMBLE] = {"test": ensemble}
    for title in done[0][1]["baselines"]:
        models[title.replace(" ", "-")] = _summary([metrics["baselines"][title] for _, metrics in done])
    run = done[0][0]
    content = {
        "benchmark": name,
        "command": f"scorebayes benchmark {name} --seeds {len(seeds)}",
        "seeds": list(seeds),
        "steps": benchmark.steps,
        "preset": benchmark.preset,
        "test_images": done[0][1]["n"],
        "estimator": run.config.sections["likelihood"],
        "nfe_per_class": done[0][1]["nfe_per_class"],
        "majority_accuracy": done[0][1]["majority_accuracy"],
        "models": models,
        "environment": environment(run.device),
        "written": time.strftime("%Y-%m-%d"),
    }
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{name}.json"
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    return path


def _one_seed(benchmark: Benchmark, source: str, path: Path, seed: int) -> tuple[Run, dict[str, Any]]:
    layers = [{"seed": seed, "train": {"steps": benchmark.steps}}]
    run = stages.train(path, source, layers, benchmark.preset, pick_device(), resume=path.exists())
    score_split(run, "test")
    return run, evaluate(run, "test")


def _summary(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per metric: mean, standard deviation and values over the seeds; the interval is the mean of the seeds' intervals."""
    test = {}
    for metric in METRICS:
        values = [metrics[metric] for metrics in each]
        intervals = [found for metrics in each if (found := metrics.get(f"{metric}_ci95")) is not None]
        test[metric] = _spread(values)
        if len(intervals) == len(each):
            test[metric]["ci95"] = np.mean(intervals, axis=0).tolist()
    return {"test": test}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation, "values": [float(v) for v in values]}


def _ensemble(runs: Sequence[Run]) -> dict[str, Any]:
    """Metrics of the seeds' mean log-posterior, renormalised; none where the seeds drew splits of their own."""
    info = runs[0].facts.info
    frames = [pd.read_csv(run.path / "predictions-test.csv", keep_default_na=False) for run in runs]
    if len(runs) < 2 or any(list(frame["image_id"]) != list(frames[0]["image_id"]) for frame in frames):
        return {}
    prob = np.stack([frame[[f"prob_{name}" for name in info.classes]].to_numpy(float) for frame in frames])
    log_prob = np.log(np.maximum(prob, 1e-12)).mean(axis=0)
    labels = frames[0]["label"].map({name: y for y, name in enumerate(info.classes)}).to_numpy()
    metrics = classification_metrics(labels, softmax(log_prob, axis=1), positive=info.positive)
    return _summary([metrics])["test"]


def _training_seconds(run: Run) -> float:
    return float(run.checkpoints.entries("state")[-1]["seconds"])
