"""Summary over the seeds of a benchmark: means and spread, differences to other models, mixtures of models, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scorebayes.baselines import open_baseline
from scorebayes.benchmark.names import (
    BEST,
    CONTROL,
    ENSEMBLE,
    OURS,
    REFERENCE,
    WITH_REFERENCE,
    is_alone,
)
from scorebayes.benchmark.stored.answers import Answers, mean_answers, seed_mean_difference, spread
from scorebayes.benchmark.training.seeds import Outcome
from scorebayes.decision.posterior import mean_posterior
from scorebayes.metrics import holm
from scorebayes.runs.run import Run

METRICS = (
    "auc", "accuracy", "balanced_accuracy", "sensitivity_at_90_specificity", "log_loss", "brier", "ece",
    "ece_by_chance",
)  # fmt: skip


def summarise(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per metric: mean, standard deviation and values over the seeds; the interval is the mean of the seeds' intervals."""
    test = {}
    for metric in METRICS:
        values = [metrics[metric] for metrics in each]
        intervals = [found for metrics in each if (found := metrics.get(f"{metric}_ci95")) is not None]
        test[metric] = spread(values)
        if len(intervals) == len(each):
            test[metric]["ci95"] = np.mean(intervals, axis=0).tolist()
    return {"test": test}


def ensemble_entry(model: str, entry: Mapping[str, Any], each: Sequence[Answers]) -> dict[str, Any]:
    """Results and cost of the seeds' mean log-posterior as an entry beside that of the model; none of a single seed, or
    where the seeds drew splits of their own."""
    if len(each) < 2 or any(answers.images != each[0].images for answers in each):
        return {}
    metrics = mean_answers(each, model).metrics(model)
    return {ENSEMBLE.format(model): {**summarise([metrics]), "cost": _of_all(entry["cost"])}}


def leads(each: Sequence[Answers], ours: str, rivals: Sequence[str]) -> dict[str, dict[str, Any]]:
    """AUC of one of our models minus that of every rival, see ``seed_mean_difference``."""
    return {rival: seed_mean_difference(each, ours, rival) for rival in rivals}


def adjusted_leads(each: Sequence[Answers], ours: str, rivals: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The same with p-values that are also adjusted for the number of rivals (Holm)."""
    found = leads(each, ours, rivals)
    adjusted = holm([lead["auc_difference_p"] for lead in found.values()])
    for lead, p in zip(found.values(), adjusted, strict=True):
        lead["auc_difference_p_holm"] = float(p)
    return found


def mixtures(
    losses: Mapping[str, Sequence[float]], ours: str = OURS, partners: int = 2
) -> dict[str, tuple[str, ...]]:
    """The models whose log-odds are the mean of others', and of which. The baselines of ``BEST``, ``partners`` of them, have
    the lowest log-loss on validation images, mean over the seeds (``val_log_loss``)."""
    found: dict[str, tuple[str, ...]] = {}
    if REFERENCE in losses:
        found[WITH_REFERENCE] = (ours, REFERENCE)
    best = tuple(sorted(losses, key=lambda name: np.mean(losses[name]))[:partners])
    if len(best) == partners:
        found[BEST] = (ours, *best)
        if partners > 1:
            found[CONTROL] = best
    return found


def add_mixtures(each: Sequence[Answers], mixed: Mapping[str, Sequence[str]]) -> list[Answers]:
    """The answers with those of ``mixtures``."""
    return [
        answers.with_models(
            {name: mean_posterior([answers.prob[part] for part in parts]) for name, parts in mixed.items()}
        )
        for answers in each
    ]


def mixture_entries(
    each: Sequence[Answers], mixed: Mapping[str, Sequence[str]], costs: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Results and costs of ``mixtures``: all that take part are trained and asked. ``costs``: of those."""
    return {
        name: {
            **summarise([answers.metrics(name) for answers in each]),
            "cost": _of_these([costs[part] for part in parts]),
        }
        for name, parts in mixed.items()
    }


def own_entry(runs: Sequence[Run], metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results and cost of our model: its runs, and what their evaluation found."""
    return {**summarise(metrics), "cost": _own_cost(runs, metrics)}


def part_entries(each: Sequence[Answers]) -> dict[str, dict[str, Any]]:
    """Results of our sources of evidence alone, where there are several; their cost is in that of our model."""
    parts = [name for name in each[0].prob if is_alone(name)]
    return {name: summarise([answers.metrics(name) for answers in each]) for name in parts}


def baseline_entry(done: Sequence[Outcome], name: str) -> dict[str, Any]:
    """Results and cost of a baseline."""
    return {**summarise([outcome.baselines[name] for outcome in done]), "cost": _baseline_cost(done, name)}


def _own_cost(runs: Sequence[Run], metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of training and of prediction, seed by seed. Multiply-adds: of the training, forward and backward."""
    return {
        "training_seconds": [_training_seconds(run) for run in runs],
        "multiply_adds": [sum(source.multiply_adds for source in run.sources.values()) for run in runs],
        "ms_per_image": [1000 * of["seconds_per_image"] for of in metrics],
        "parameters": sum(source.parameters for source in runs[0].sources.values()),
    }


def _baseline_cost(done: Sequence[Outcome], name: str) -> dict[str, Any]:
    """As for our model, with tuning listed separately. Not every baseline has multiply-adds: None."""
    records = [open_baseline(outcome.run, name).record for outcome in done]
    return {
        "training_seconds": [record["seconds"] for record in records],
        "tuning_seconds": [record.get("seconds_tuning", 0.0) for record in records],
        "multiply_adds": [record.get("multiply_adds") for record in records],
        "tuning_multiply_adds": [record.get("multiply_adds_tuning") for record in records],
        "ms_per_image": [1000 * outcome.baselines[name]["seconds_per_image"] for outcome in done],
        "parameters": records[0]["parameters"],
    }


def val_log_loss(done: Sequence[Outcome], name: str) -> list[float]:
    """Of a baseline on validation images (cross-fitted temperature), seed by seed."""
    return [float(open_baseline(outcome.run, name).record["val_log_loss"]) for outcome in done]


def _of_all(cost: Mapping[str, Any]) -> dict[str, Any]:
    """The cost of the mean of the seeds' posteriors: the sum over all seeds."""
    lists = {key: [_known_sum(value)] for key, value in cost.items() if isinstance(value, list)}
    return {**lists, "parameters": cost["parameters"] * len(cost["training_seconds"])}


def _of_these(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The cost of several models together, seed by seed, with the keys of the first."""
    columns = {key: [cost[key] for cost in costs] for key in costs[0]}
    return {
        key: [_known_sum(seed) for seed in zip(*column, strict=True)]
        if isinstance(column[0], list)
        else sum(column)
        for key, column in columns.items()
    }


def _known_sum(values: Sequence[float | None]) -> float | None:
    """None where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _training_seconds(run: Run) -> float:
    """Of all sources of the run, and of the run it started from."""
    start = run.start
    before = _training_seconds(start) if start else 0.0
    return before + sum(source.seconds for source in run.sources.values())
