"""Benchmarks: train, score and evaluate our model and the baselines over seeds, and sum the results up in one JSON file.

Every seed has a run directory of its own under ``runs/benchmarks/<name>/``; what is finished there is not done again.
Baselines that were measured before, elsewhere even, can be taken over from the result files. All choices are made on
training and validation images; the test split is read once per seed.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scorebayes import stages
from scorebayes.baselines import (
    BASELINES,
    fit_baseline,
    open_baseline,
    predict_baseline,
    read_predictions,
    score_step_cost,
    score_steps,
)
from scorebayes.baselines.network import Network
from scorebayes.benchmark_names import (
    BEST,
    CONTROL,
    ENSEMBLE,
    MORE,
    OURS,
    REFERENCE,
    WITH_REFERENCE,
    WITHOUT_OURS,
)
from scorebayes.benchmark_posteriors import posteriors_path, read_posteriors, write_posteriors
from scorebayes.checkpoint import write_atomically
from scorebayes.errors import ConfigError, DataError
from scorebayes.evaluate import evaluate
from scorebayes.metrics import classification_metrics, clustered_bootstrap, holm
from scorebayes.posterior import mean_posterior
from scorebayes.run import Run, environment, pick_device
from scorebayes.scoring import score_split
from scorebayes.spreadsheet import plain

METRICS = (
    "auc", "accuracy", "balanced_accuracy", "sensitivity_at_90_specificity", "log_loss", "brier", "ece",
    "ece_by_chance",
)  # fmt: skip
QUICK_STEPS, QUICK_NETWORK_STEPS = 200, 30
N_BOOTSTRAP = 2000


@dataclass(frozen=True)
class Benchmark:
    """A data set under the data root, the budget every seed gets, and the baselines that are compared with.

    network_steps: of the baselines' networks; None: what costs as many multiply-adds as the training of our model.
    free_steps: how many of our steps use no label: they see all images of the training split (``pretrain``), and the
    others start from there; 0: all use labels. layer: configuration that differs from the preset's.
    """

    source: str
    steps: int = 1000
    preset: str = "small"
    baselines: tuple[str, ...] = tuple(BASELINES)
    network_steps: int | None = None
    free_steps: int = 0
    layer: Mapping[str, Any] = field(default_factory=dict)

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


MORE_LIKELIHOOD = {"repeats": 4}
"""[likelihood] of the variant that spends more on an image (``MORE``): the same weights, twice the evaluations,
generative as well. The hybrid loss was tried in its place and lost on held-out training images (docs/decisions/0008)."""

FROM_LABEL_FREE = {"lr": 1e-3, "warmup": 20, "validate_every": 50}
"""[train] where the weights are good already and the labels are to be learned (docs/decisions/0009)."""

BENCHMARKS = {
    "breastmnist": Benchmark("medmnist:{root}/medmnist/breastmnist.npz"),
    "pneumoniamnist": Benchmark("medmnist:{root}/medmnist/pneumoniamnist.npz", steps=2000),
    "ddsm64": Benchmark("ddsm64:{root}/ddsm64", steps=3000, preset="light", layer={"net": {"patch": 4}}),
    "phantom": Benchmark("phantom", steps=1500, preset="tiny"),
}


@dataclass(frozen=True)
class Outcome:
    """What one seed answered: [N] labels, image ids and patients; metrics of the run; posterior [N, Y] of the run (as
    ``OURS``) and of the baselines, and of the ``mixtures`` that were added."""

    run: Run
    metrics: Mapping[str, Any]
    labels: NDArray[np.int64]
    images: tuple[str, ...]
    groups: tuple[str, ...]
    prob: Mapping[str, NDArray[np.float64]]

    @property
    def baselines(self) -> dict[str, Mapping[str, Any]]:
        """Metrics of the baselines by name."""
        return {entry["name"]: entry for entry in self.metrics["baselines"].values()}

    def metrics_of(self, model: str) -> dict[str, Any]:
        """Metrics of any posterior, by patient."""
        positive = self.run.facts.info.positive
        return classification_metrics(self.labels, self.prob[model], positive=positive, groups=self.groups)

    def rows(self, model: str, held_as: str, seed: int) -> pd.DataFrame:
        """A posterior as rows of the posteriors' file (``benchmark_posteriors``), under the model's name there."""
        classes = self.run.facts.classes
        prob = {f"prob_{name}": self.prob[held_as][:, y].astype(np.float32) for y, name in enumerate(classes)}
        about = {"model": model, "seed": seed, "image_id": self.images, "patient_id": self.groups}
        return pd.DataFrame({**about, "label": np.asarray(classes, dtype=object)[self.labels], **prob})


def run_benchmark(
    name: str,
    data_root: Path,
    runs: Path,
    results: Path,
    seeds: Sequence[int],
    *,
    baselines: Sequence[str] | None = None,
    quick: bool = False,
    keep: bool = False,
) -> Path:
    """Run a benchmark over seeds and write ``<results>/<name>.json`` (``<name>-quick.json``) with the posteriors beside it.

    ``baselines``: names to compare with, instead of the benchmark's own. ``keep``: other baselines stay as they were
    measured before; they take part in comparisons and mixtures if their posteriors are in the file. DataError if the data
    are absent, ConfigError for an unknown baseline, or where what is kept had another budget or other seeds.
    """
    benchmark = BENCHMARKS[name]
    if baselines is not None:
        benchmark = replace(benchmark, baselines=require_known(baselines))
    stem = f"{name}-quick" if quick else name
    benchmark = benchmark.quick() if quick else benchmark
    source = benchmark.source.format(root=data_root.resolve())
    if source != benchmark.source and not Path(source.partition(":")[2]).exists():
        raise DataError(f"{source.partition(':')[2]}: no such file.", "Name the data root with --data-root.")
    path = results / f"{stem}.json"
    budget = {
        "seeds": list(seeds),
        "steps": benchmark.steps,
        "label_free_steps": benchmark.free_steps,
        "preset": benchmark.preset,
    }
    asked = (
        "logistic",
        *benchmark.baselines,
    )  # the logistic regression is fitted wherever a run is evaluated
    kept = _kept(path, budget, asked) if keep else {}
    pairs: list[tuple[Outcome, Outcome]] = []
    for seed in seeds:
        tuned = pairs[0][0].run if pairs else None
        pairs.append(_one_seed(benchmark, source, runs / stem / f"seed-{seed}", seed, tuned))
    done, more = [default for default, _ in pairs], [with_more for _, with_more in pairs]
    first, metrics = done[0].run, done[0].metrics
    trained = [name for name in done[0].baselines if name in asked]
    said = read_posteriors(posteriors_path(path)) if kept else {}
    known = [name for name in kept if all((name, seed) in said for seed in seeds)]
    done, more = (
        [_with_posteriors(outcome, said, known, seed) for outcome, seed in zip(some, seeds, strict=True)]
        for some in (done, more)
    )
    compared = [name for name in BASELINES if name in (*trained, *known)]
    models: dict[str, Any] = {}
    for model, outcomes in ((OURS, done), (MORE, more)):
        each = [outcome.metrics for outcome in outcomes]
        models[model] = {**summarise(each), "cost": own_cost(outcomes)}
        models |= _ensemble_entry(model, models[model], outcomes, OURS)
    for baseline in BASELINES:
        if baseline in kept:
            models |= kept[baseline]
        elif baseline in trained:
            each = [outcome.baselines[baseline] for outcome in done]
            models[baseline] = {
                **summarise(each),
                "cost": baseline_cost(done, baseline),
                "val_log_loss": val_log_loss(done, baseline),
            }
            if isinstance(BASELINES[baseline], Network):  # the others hardly depend on the seed
                models |= _ensemble_entry(baseline, models[baseline], done, baseline)
    paired = {OURS: _paired(done, compared), MORE: _paired(more, compared)}
    mixed = mixtures({name: models[name]["val_log_loss"] for name in compared})
    more = add_mixtures(more, mixed)
    costs = {**{name: models[name]["cost"] for name in compared}, OURS: models[MORE]["cost"]}
    for model, entry in mixture_entries(more, mixed, costs).items():
        models |= {model: entry, **_ensemble_entry(model, entry, more, model)}
        if model in WITHOUT_OURS:
            paired[model] = _paired(more, list(dict.fromkeys([*compared, WITHOUT_OURS[model]])), model)
    content = {
        "benchmark": name,
        "command": f"scorebayes benchmark {name} --seeds {len(seeds)}"
        + ("" if baselines is None else f" --baselines {','.join(baselines) or 'none'}")
        + (" --keep" if keep else "")
        + (" --quick" if quick else ""),
        "quick": quick,
        **budget,
        "more": {"likelihood": MORE_LIKELIHOOD},
        "mixtures": {
            model: [MORE if part == OURS else part for part in parts] for model, parts in mixed.items()
        },
        "classes": list(first.facts.classes),
        "positive": first.facts.classes[first.facts.info.positive],
        "test_images": metrics["n"],
        "estimator": first.config.sections["likelihood"],
        "nfe_per_class": metrics["nfe_per_class"],
        "majority_accuracy": metrics["majority_accuracy"],
        "models": models,
        "paired": paired,
        "environment": environment(first.device),
        "written": time.strftime("%Y-%m-%d"),
    }
    results.mkdir(parents=True, exist_ok=True)
    others = {name: (name, more) for name in (*compared, *mixed)}
    rows = [
        outcome.rows(model, held_as, seed)
        for model, (held_as, outcomes) in {OURS: (OURS, done), MORE: (OURS, more), **others}.items()
        for outcome, seed in zip(outcomes, seeds, strict=True)
    ]
    write_posteriors(posteriors_path(path), rows)
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    return path


def _kept(path: Path, budget: Mapping[str, Any], trained: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The entries of the baselines that an earlier file has and this run does not train, by name: that of the baseline and,
    where there is one, of its ensemble. They say when they were measured, and by which command."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file, so that nothing can be kept.", "Leave out --keep.")
    earlier = json.loads(path.read_text(encoding="utf-8"))
    for key, value in budget.items():
        if earlier[key] != value:
            raise ConfigError(
                f"{path}: its {key} were {earlier[key]}, now they are {value}.", "Leave out --keep."
            )
    origin = {"written": earlier["written"], "command": earlier["command"]}
    return {
        name: {
            model: {**entry, "measured": entry.get("measured", origin)}
            for model, entry in earlier["models"].items()
            if model in (name, ENSEMBLE.format(name))
        }
        for name in BASELINES
        if name in earlier["models"] and name not in trained
    }


def _with_posteriors(
    outcome: Outcome, said: Mapping[tuple[str, int], pd.DataFrame], names: Sequence[str], seed: int
) -> Outcome:
    """An outcome with what baselines said before of the same images. DataError where they saw others."""
    columns = [f"prob_{name}" for name in outcome.run.facts.classes]
    prob = dict(outcome.prob)
    for name in names:
        rows = said[name, seed].reindex(list(outcome.images))
        if rows[columns].isna().any(axis=None):
            raise DataError(f"the kept posteriors of {name} are of other test images.", "Leave out --keep.")
        prob[name] = rows[columns].to_numpy(np.float64)
    return replace(outcome, prob=prob)


def require_known(names: Sequence[str]) -> tuple[str, ...]:
    """ConfigError for a name that is no baseline."""
    for name in names:
        if name not in BASELINES:
            raise ConfigError(f"unknown baseline {name!r}.", f"Known: {', '.join(BASELINES)}.")
    return tuple(names)


def _one_seed(
    benchmark: Benchmark, source: str, path: Path, seed: int, tuned: Run | None
) -> tuple[Outcome, Outcome]:
    """The run with its baselines, and the same weights with more evaluations. ``tuned``: the first seed's run, whose
    baselines' settings are taken over; our own settings are the same for all seeds, too."""
    start = pretrain(benchmark, source, path.with_name(f"{path.name}-label-free"), seed)
    layers = benchmark.layers(seed, benchmark.steps - benchmark.free_steps, start)
    default = train_beside(benchmark, source, path, layers, tuned)
    more_path = path.with_name(f"{path.name}-more")
    if not more_path.exists():
        partial = path.with_name(f"{path.name}-partial")
        shutil.copytree(
            path, partial, ignore=shutil.ignore_patterns("baselines", "*-val*", "*-test*"), dirs_exist_ok=True
        )
        partial.rename(more_path)
    more_layers = [*layers, {"likelihood": MORE_LIKELIHOOD}]
    more = stages.train(more_path, source, more_layers, benchmark.preset, pick_device(), resume=True)
    score_split(more, "test")
    return default, outcome_of(more, evaluate(more, "test"), beside=default)


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
    for name in benchmark.baselines:
        fit_baseline(run, name, benchmark.network_steps, tuned=tuned)
        for split in ("val", "test"):
            predict_baseline(run, name, split)
    return outcome_of(run, evaluate(run, "test"))


def outcome_of(run: Run, metrics: Mapping[str, Any], beside: Outcome | None = None) -> Outcome:
    """The stored posteriors of a run and of its baselines, or those of another run, for the images that it could answer."""
    classes = run.facts.classes
    columns = [f"prob_{name}" for name in classes]
    own = pd.read_csv(run.path / "predictions-test.csv", keep_default_na=False, dtype=str)
    own = own[own["status"] == "ok"]
    own = own.assign(image_id=own["image_id"].map(plain))
    prob = {OURS: own[columns].to_numpy(np.float64)}
    peers_of, peers = (run, metrics) if beside is None else (beside.run, beside.metrics)
    for entry in peers["baselines"].values():
        frame = read_predictions(peers_of, entry["name"], "test")
        assert frame is not None  # it is where the metrics come from
        prob[entry["name"]] = frame.loc[list(own["image_id"]), columns].to_numpy(np.float64)
    labels = own["label"].map({name: y for y, name in enumerate(classes)}).to_numpy(np.int64)
    groups = own["patient_id"].where(own["patient_id"] != "", own["image_id"])
    return Outcome(run, metrics, labels, tuple(own["image_id"]), tuple(groups), prob)


def _paired(done: Sequence[Outcome], rivals: Sequence[str], ours: str = OURS) -> dict[str, Any]:
    """Our AUC minus that of every rival; p-values also adjusted for the number of rivals (Holm)."""
    found = leads(done, rivals, ours)
    adjusted = holm([lead["auc_difference_p"] for lead in found.values()])
    for (rival, lead), p in zip(found.items(), adjusted, strict=True):
        # A seed's own interval is at hand where the run was evaluated beside this baseline.
        intervals = [
            ci for o in done if (ci := o.baselines.get(rival, {}).get("auc_difference_ci95")) is not None
        ]
        lead["auc_difference_p_holm"] = float(p)
        if ours == OURS and len(intervals) == len(done):
            lead["auc_difference_ci95_of_seeds"] = np.mean(intervals, axis=0).tolist()
    return found


def leads(done: Sequence[Outcome], rivals: Sequence[str], ours: str = OURS) -> dict[str, dict[str, Any]]:
    """AUC of one of our models minus that of every rival, see ``seed_mean_difference``."""
    positive = done[0].run.facts.info.positive
    return {rival: seed_mean_difference(done, ours, rival, positive) for rival in rivals}


def val_log_loss(done: Sequence[Outcome], name: str) -> list[float]:
    """Of a baseline on validation images (cross-fitted temperature), seed by seed."""
    return [float(open_baseline(outcome.run, name).record["val_log_loss"]) for outcome in done]


def mixtures(losses: Mapping[str, Sequence[float]]) -> dict[str, tuple[str, ...]]:
    """The models whose log-odds are the mean of others', and of which. The two baselines of ``BEST`` have the lowest
    log-loss on validation images, mean over the seeds (``val_log_loss``)."""
    found: dict[str, tuple[str, ...]] = {}
    if REFERENCE in losses:
        found[WITH_REFERENCE] = (OURS, REFERENCE)
    if len(losses) > 1:
        best, second = sorted(losses, key=lambda name: np.mean(losses[name]))[:2]
        found |= {BEST: (OURS, best, second), CONTROL: (best, second)}
    return found


def add_mixtures(done: Sequence[Outcome], mixed: Mapping[str, Sequence[str]]) -> list[Outcome]:
    """The outcomes with the posteriors of ``mixtures``."""

    def posteriors(outcome: Outcome) -> dict[str, NDArray[np.float64]]:
        return {name: mean_posterior([outcome.prob[part] for part in parts]) for name, parts in mixed.items()}

    return [replace(outcome, prob={**outcome.prob, **posteriors(outcome)}) for outcome in done]


def mixture_entries(
    done: Sequence[Outcome], mixed: Mapping[str, Sequence[str]], costs: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Results and costs of ``mixtures``: all that take part are trained and asked. ``costs``: of ``OURS`` and baselines."""
    return {
        name: {
            **summarise([outcome.metrics_of(name) for outcome in done]),
            "cost": _of_these([costs[part] for part in parts]),
        }
        for name, parts in mixed.items()
    }


def seed_mean_difference(done: Sequence[Outcome], first: str, second: str, positive: int) -> dict[str, Any]:
    """AUC of one model minus that of another, mean over the seeds, with interval and p by the bootstrap over patients.

    A patient is drawn for all seeds together: seeds with the same test split are no further patients. The mean of the
    seeds' own intervals (DeLong) is wider, as it does not know that the seeds' chance averages out.
    """
    differences = [
        _weighted_difference(o.labels == positive, o.prob[first][:, positive], o.prob[second][:, positive])
        for o in done
    ]
    ends = np.cumsum([len(o.labels) for o in done])[:-1]

    def by_seed(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = np.split(weights, ends, axis=1)
        return np.stack([f(part) for f, part in zip(differences, parts, strict=True)], axis=1)

    groups = [group for outcome in done for group in outcome.groups]
    values = by_seed(np.ones((1, len(groups))))[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = clustered_bootstrap(lambda w: by_seed(w).mean(axis=1), groups, n_bootstrap=N_BOOTSTRAP)
    draws = draws[np.isfinite(draws)]  # a replicate without any case of a class has no AUC
    tail = min((draws <= 0).sum(), (draws >= 0).sum()) + 1  # the observed one counts too: no p of zero
    return {
        "auc_difference": float(values.mean()),
        "auc_difference_values": values.tolist(),
        "auc_difference_ci95": np.quantile(draws, [0.025, 0.975]).tolist(),
        "auc_difference_p": float(min(1.0, 2 * tail / (len(draws) + 1))),
    }


def _weighted_difference(
    truth: NDArray[np.bool_], first: NDArray[np.float64], second: NDArray[np.float64]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Case weights [R, N] -> difference of two AUCs [R], as the mean over pairs of a positive and a negative case."""
    pairs = _wins(truth, first) - _wins(truth, second)

    def difference(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        positives, negatives = weights[:, truth], weights[:, ~truth]
        return ((positives @ pairs) * negatives).sum(1) / (positives.sum(1) * negatives.sum(1))

    return difference


def _wins(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.sign(score[truth][:, None] - score[~truth]))


def own_cost(done: Sequence[Outcome]) -> dict[str, Any]:
    """Of training and of prediction, seed by seed. Multiply-adds: of the training, forward and backward."""
    runs = [outcome.run for outcome in done]
    return {
        "training_seconds": [_training_seconds(run) for run in runs],
        "multiply_adds": [score_steps(run) * score_step_cost(run) for run in runs],
        "ms_per_image": [1000 * outcome.metrics["seconds_per_image"] for outcome in done],
        "parameters": sum(p.numel() for p in runs[0].new_denoiser().parameters()),
    }


def baseline_cost(done: Sequence[Outcome], name: str) -> dict[str, Any]:
    """As of our own model; tuning beside. Not every baseline has multiply-adds: None."""
    records = [open_baseline(outcome.run, name).record for outcome in done]
    return {
        "training_seconds": [record["seconds"] for record in records],
        "tuning_seconds": [record.get("seconds_tuning", 0.0) for record in records],
        "multiply_adds": [record.get("multiply_adds") for record in records],
        "tuning_multiply_adds": [record.get("multiply_adds_tuning") for record in records],
        "ms_per_image": [1000 * outcome.baselines[name]["seconds_per_image"] for outcome in done],
        "parameters": records[0]["parameters"],
    }


def _of_all(cost: Mapping[str, Any]) -> dict[str, Any]:
    """What the mean of the seeds' posteriors costs: all of them."""
    lists = {key: [_known_sum(value)] for key, value in cost.items() if isinstance(value, list)}
    return {**lists, "parameters": cost["parameters"] * len(cost["training_seconds"])}


def _of_these(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several models cost together, seed by seed, in what is told of the first."""
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


def summarise(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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


def _ensemble_entry(
    model: str, entry: Mapping[str, Any], outcomes: Sequence[Outcome], held_as: str
) -> dict[str, Any]:
    """Results and cost of the seeds' mean log-posterior as an entry beside that of the model; none of a single seed, or
    where the seeds drew splits of their own. ``held_as``: the model's name in the outcomes."""
    if not _same_images(outcomes):
        return {}
    mean = mean_posterior([outcome.prob[held_as] for outcome in outcomes])
    metrics = replace(outcomes[0], prob={held_as: mean}).metrics_of(held_as)
    return {ENSEMBLE.format(model): {**summarise([metrics]), "cost": _of_all(entry["cost"])}}


def _same_images(outcomes: Sequence[Outcome]) -> bool:
    """Of two or more seeds with one test split."""
    return len(outcomes) > 1 and all(outcome.images == outcomes[0].images for outcome in outcomes)


def _training_seconds(run: Run) -> float:
    """Of the run and of the one it started from."""
    start = run.start
    before = _training_seconds(start) if start else 0.0
    return before + float(run.checkpoints.entries("state")[-1]["seconds"])
