"""The accuracy benchmarks: all models over seeds, summed up in one JSON file with the posteriors beside it.

Baselines that were measured before, elsewhere even, can be taken over from the result files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scorebayes.baselines import BASELINES, open_baseline
from scorebayes.baselines.network import Network
from scorebayes.benchmark.answers import Answers
from scorebayes.benchmark.copies import near_copies
from scorebayes.benchmark.names import ENSEMBLE, MORE, OURS, PARTS, WITHOUT_OURS
from scorebayes.benchmark.posteriors import posteriors_path, read_posteriors, write_posteriors
from scorebayes.benchmark.seeds import BENCHMARKS, MORE_LIKELIHOOD, Benchmark, Outcome, one_seed
from scorebayes.benchmark.summary import (
    add_mixtures,
    adjusted_leads,
    baseline_entry,
    ensemble_entry,
    mixture_entries,
    mixtures,
    own_entry,
    part_entries,
    val_log_loss,
)
from scorebayes.checkpoint import write_atomically
from scorebayes.errors import ConfigError, DataError
from scorebayes.run import environment, open_run


def run_one_seed(
    name: str,
    data_root: Path,
    runs: Path,
    seed: int,
    *,
    baselines: Sequence[str] | None = None,
    quick: bool = False,
) -> Path:
    """Train, score and evaluate the models of one seed and write no results: seeds can run on several machines that share
    ``runs``, and ``run_benchmark`` then finds them done. Seed 0 comes first: its baselines' settings are everyone's.

    Returns the run directory. Errors as of ``run_benchmark``.
    """
    benchmark, source, stem = _asked(name, data_root, baselines, quick)
    folder, tuned = runs / stem, None
    if seed:
        tuned = open_run(folder / "seed-0")
        for baseline in benchmark.baselines:
            open_baseline(tuned, baseline)  # ConfigError where it is not trained yet
    return one_seed(benchmark, source, folder / f"seed-{seed}", seed, tuned).run.path


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
    benchmark, source, stem = _asked(name, data_root, baselines, quick)
    path = results / f"{stem}.json"
    budget = {
        "seeds": list(seeds),
        "steps": benchmark.steps,
        "label_free_steps": benchmark.free_steps,
        "preset": benchmark.preset,
    }
    # The logistic regression is fitted wherever a run is evaluated.
    asked = ("logistic", *benchmark.baselines)
    kept = _kept(path, budget, asked) if keep else {}
    outcomes: list[Outcome] = []
    for seed in seeds:
        tuned = outcomes[0].run if outcomes else None
        outcomes.append(one_seed(benchmark, source, runs / stem / f"seed-{seed}", seed, tuned))
    first, metrics = outcomes[0].run, outcomes[0].metrics
    said = read_posteriors(posteriors_path(path)) if kept else {}
    known = [name for name in kept if all((name, seed) in said for seed in seeds)]
    each = [
        _with_kept(outcome.answers, {name: said[name, seed] for name in known}, first.facts.classes)
        for outcome, seed in zip(outcomes, seeds, strict=True)
    ]
    models = _own_entries(outcomes)
    trained = [name for name in outcomes[0].baselines if name in asked]
    for baseline in BASELINES:
        if baseline in kept:
            models |= kept[baseline]
        elif baseline in trained:
            models |= _baseline_entries(outcomes, baseline)
    compared = [name for name in BASELINES if name in (*trained, *known)]
    paired = {ours: adjusted_leads(each, ours, compared) for ours in (OURS, MORE)}
    mixed = mixtures({name: models[name]["val_log_loss"] for name in compared}, MORE)
    each = add_mixtures(each, mixed)
    costs = {name: models[name]["cost"] for name in (MORE, *compared)}
    for model, entry in mixture_entries(each, mixed, costs).items():
        models |= {model: entry, **ensemble_entry(model, entry, each)}
        if model in WITHOUT_OURS:
            rivals = dict.fromkeys([*compared, WITHOUT_OURS[model]])
            paired[model] = adjusted_leads(each, model, list(rivals))
    answered = [name for name in (OURS, MORE, *PARTS, *compared, *mixed) if name in each[0].prob]
    content = {
        "benchmark": name,
        "command": _command(name, len(seeds), baselines, keep, quick),
        "quick": quick,
        **budget,
        "more": {"likelihood": MORE_LIKELIHOOD},
        "mixtures": mixed,
        "classes": list(first.facts.classes),
        "positive": first.facts.classes[first.facts.info.positive],
        "test_images": metrics["n"],
        "estimator": first.config.sections["likelihood"],
        "nfe_per_class": metrics["nfe_per_class"],
        "majority_accuracy": metrics["majority_accuracy"],
        "models": models,
        "paired": paired,
        "near_copies": near_copies([outcome.run for outcome in outcomes], each, answered),
        "environment": environment(first.device),
        "written": time.strftime("%Y-%m-%d"),
    }
    results.mkdir(parents=True, exist_ok=True)
    write_posteriors(posteriors_path(path), seeds, each, answered, first.facts.classes)
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    return path


def _asked(
    name: str, data_root: Path, baselines: Sequence[str] | None, quick: bool
) -> tuple[Benchmark, str, str]:
    """A benchmark with these baselines, its source, and what its files are called."""
    benchmark = BENCHMARKS[name]
    if baselines is not None:
        benchmark = replace(benchmark, baselines=require_known(baselines))
    source = benchmark.source.format(root=data_root.resolve())
    if source != benchmark.source and not Path(source.partition(":")[2]).exists():
        raise DataError(f"{source.partition(':')[2]}: no such file.", "Name the data root with --data-root.")
    return (benchmark.quick(), source, f"{name}-quick") if quick else (benchmark, source, name)


def _command(name: str, n_seeds: int, baselines: Sequence[str] | None, keep: bool, quick: bool) -> str:
    """What makes the file."""
    words = [f"scorebayes benchmark {name} --seeds {n_seeds}"]
    if baselines is not None:
        words.append(f"--baselines {','.join(baselines) or 'none'}")
    return " ".join(words + [flag for flag, on in {"--keep": keep, "--quick": quick}.items() if on])


def _own_entries(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Results and cost of our model, of the same with more evaluations, and of their ensembles."""
    answers, runs = [outcome.answers for outcome in outcomes], [outcome.run for outcome in outcomes]
    entries: dict[str, Any] = {}
    for model, metrics in (
        (OURS, [outcome.metrics for outcome in outcomes]),
        (MORE, [outcome.more_metrics for outcome in outcomes]),
    ):
        entries[model] = own_entry(runs, metrics)
        entries |= ensemble_entry(model, entries[model], answers)
    return entries | part_entries(answers)


def _baseline_entries(outcomes: Sequence[Outcome], name: str) -> dict[str, Any]:
    """Results and cost of a baseline; of a network's ensemble, too (the others hardly depend on the seed)."""
    entry = {**baseline_entry(outcomes, name), "val_log_loss": val_log_loss(outcomes, name)}
    networks = isinstance(BASELINES[name], Network)
    return {name: entry} | (ensemble_entry(name, entry, [o.answers for o in outcomes]) if networks else {})


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


def _with_kept(answers: Answers, said: Mapping[str, pd.DataFrame], classes: Sequence[str]) -> Answers:
    """The answers with what baselines said before of the same images. DataError where they saw others."""
    prob = {}
    for name, frame in said.items():
        rows = frame.reindex(list(answers.images))[[f"prob_{y}" for y in classes]]
        if rows.isna().any(axis=None):
            raise DataError(f"the kept posteriors of {name} are of other test images.", "Leave out --keep.")
        prob[name] = rows.to_numpy(np.float64)
    return answers.with_models(prob)


def require_known(names: Sequence[str]) -> tuple[str, ...]:
    """ConfigError for a name that is no baseline."""
    for name in names:
        if name not in BASELINES:
            raise ConfigError(f"unknown baseline {name!r}.", f"Known: {', '.join(BASELINES)}.")
    return tuple(names)
