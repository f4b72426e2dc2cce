"""The accuracy benchmarks: all models over seeds, in one JSON file with the posteriors in a file next to it.

Earlier measurements, even from another machine, can be kept from the result files (``earlier``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scorebayes.baselines import BASELINES, open_baseline
from scorebayes.baselines.network import Network
from scorebayes.benchmark.names import MORE, OURS, PRETRAINED, WITHOUT_OURS, is_alone
from scorebayes.benchmark.stored.earlier import ABOUT, Earlier
from scorebayes.benchmark.stored.posteriors import posteriors_path, write_posteriors
from scorebayes.benchmark.training.copies import near_copies
from scorebayes.benchmark.training.seeds import (
    BENCHMARKS,
    Benchmark,
    Outcome,
    baselines_of_seed,
    beside,
    one_seed,
)
from scorebayes.benchmark.training.summary import (
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
from scorebayes.errors import ConfigError
from scorebayes.runs.device import environment
from scorebayes.runs.run import open_run
from scorebayes.storage.atomic import write_atomically


def run_one_seed(
    name: str,
    data_root: Path,
    runs: Path,
    seed: int,
    *,
    baselines: Sequence[str] | None = None,
    quick: bool = False,
    keep_ours: bool = False,
) -> Path:
    """Train, score and evaluate the models of one seed and write no results: seeds can run on several machines that share
    ``runs``, and ``run_benchmark`` then finds them done. Seed 0 comes first: its baselines' settings are everyone's.

    ``keep_ours``: the baselines alone. Returns the run directory. Errors as of ``run_benchmark``.
    """
    benchmark, source, stem = _asked(name, data_root, runs, baselines, quick)
    folder, tuned = runs / stem, None
    if seed:
        tuned = open_run(folder / "seed-0")
        for baseline in benchmark.baselines:
            open_baseline(tuned, baseline)  # ConfigError where it is not trained yet
    path = folder / f"seed-{seed}"
    if keep_ours:
        return baselines_of_seed(benchmark, source, path, seed, tuned).path
    return one_seed(benchmark, source, path, seed, tuned).run.path


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
    keep_ours: bool = False,
) -> Path:
    """Run a benchmark over seeds and write ``<results>/<name>.json`` (``<name>-quick.json``) with the posteriors beside it.

    ``baselines``: names to compare with, instead of the benchmark's own list. ``keep``: keep the earlier results of other
    baselines; they take part in comparisons and mixtures if their posteriors are in the file. ``keep_ours``: keep our
    results as well and do not train our model. DataError if the data are missing or the kept results are for other images,
    ConfigError for an unknown baseline, or if the kept results are missing or had another budget or other seeds.
    """
    benchmark, source, stem = _asked(name, data_root, runs, baselines, quick)
    path = results / f"{stem}.json"
    flags = {"--keep": keep and not keep_ours, "--keep-ours": keep_ours, "--quick": quick}
    budget = {
        "seeds": list(seeds),
        "steps": benchmark.steps,
        "label_free_steps": benchmark.free_steps,
        "preset": benchmark.preset,
    }
    earlier = Earlier.read(path, budget) if keep or keep_ours else None
    outcomes: list[Outcome] = []
    for seed in seeds:
        place = source, runs / stem / f"seed-{seed}", seed, outcomes[0].run if outcomes else None
        if earlier and keep_ours:
            run = baselines_of_seed(benchmark, *place)
            outcomes.append(beside(earlier.own_answers(seed, run.facts.info), run, benchmark.baselines))
        else:
            outcomes.append(one_seed(benchmark, *place))
    first, each = outcomes[0].run, [outcome.answers for outcome in outcomes]
    # The logistic regression is fitted wherever a run is evaluated.
    trained = benchmark.baselines if keep_ours else ("logistic", *benchmark.baselines)
    known = earlier.answered([name for name in BASELINES if name not in trained], seeds) if earlier else []
    if earlier:
        classes = first.facts.classes
        each = [earlier.add(of, known, seed, classes) for of, seed in zip(each, seeds, strict=True)]
    if earlier and keep_ours:
        models, about = earlier.entries(earlier.own), earlier.about
    else:
        models, about = _own_entries(outcomes), _about(outcomes[0])
    for baseline in BASELINES:
        if baseline in trained:
            models |= _baseline_entries(outcomes, baseline)
        elif earlier:
            models |= earlier.entries([baseline])
    compared = [name for name in BASELINES if name in (*trained, *known)]
    ours = [OURS, MORE] if benchmark.more is not None else [OURS]
    paired = {model: adjusted_leads(each, model, compared) for model in ours}
    # Pretrained weights are never mixed with models from scratch.
    alike = [model for model in compared if BASELINES[model].pretrained == (name in PRETRAINED)]
    losses = {model: models[model]["val_log_loss"] for model in alike}
    mixed = mixtures(losses, ours[-1], partners=1 if name in PRETRAINED else 2)
    each = add_mixtures(each, mixed)
    costs = {name: models[name]["cost"] for name in (*ours, *compared)}
    for model, entry in mixture_entries(each, mixed, costs).items():
        models |= {model: entry, **ensemble_entry(model, entry, each)}
        if model in WITHOUT_OURS:
            without = {WITHOUT_OURS[model]} & set(mixed)  # a single partner is among the compared
            paired[model] = adjusted_leads(each, model, [*compared, *without])
    parts = filter(is_alone, each[0].prob)
    answered = [name for name in (*ours, *parts, *compared, *mixed) if name in each[0].prob]
    content = {
        "benchmark": name,
        "command": _command(name, len(seeds), baselines, flags),
        "quick": quick,
        **budget,
        "more": None if benchmark.more is None else {"likelihood": dict(benchmark.more)},
        "pretrained": PRETRAINED.get(name),
        "configuration": dict(benchmark.layer),
        "mixtures": mixed,
        "classes": list(first.facts.classes),
        "positive": first.facts.classes[first.facts.info.positive],
        **about,
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
    name: str, data_root: Path, runs: Path, baselines: Sequence[str] | None, quick: bool
) -> tuple[Benchmark, str, str]:
    """A benchmark with these baselines, its source, and what its files are called."""
    benchmark = BENCHMARKS[name]
    if baselines is not None:
        benchmark = replace(benchmark, baselines=require_known(baselines))
    source = benchmark.located(data_root, runs)
    return (benchmark.quick(), source, f"{name}-quick") if quick else (benchmark, source, name)


def _command(name: str, n_seeds: int, baselines: Sequence[str] | None, flags: Mapping[str, bool]) -> str:
    """What makes the file."""
    words = [f"scorebayes benchmark {name} --seeds {n_seeds}"]
    if baselines is not None:
        words.append(f"--baselines {','.join(baselines) or 'none'}")
    return " ".join(words + [flag for flag, on in flags.items() if on])


def _about(outcome: Outcome) -> dict[str, Any]:
    """What a seed tells of the test split and of our estimator (``ABOUT``), or, without pixels, of all sources."""
    metrics, run = outcome.metrics, outcome.run
    estimator = run.config.sections["likelihood" if run.has_image_score else "evidence"]
    told = (metrics["n"], estimator, metrics["nfe_per_class"], metrics["majority_accuracy"])
    return dict(zip(ABOUT, told, strict=True))


def _own_entries(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Results and cost of our model, of the same with more evaluations, and of their ensembles."""
    answers, runs = [outcome.answers for outcome in outcomes], [outcome.run for outcome in outcomes]
    entries: dict[str, Any] = {}
    for model, metrics in (
        (OURS, [outcome.metrics for outcome in outcomes]),
        (MORE, [outcome.more_metrics for outcome in outcomes]),
    ):
        if not any(metrics):
            continue
        entries[model] = own_entry(runs, metrics)
        entries |= ensemble_entry(model, entries[model], answers)
    return entries | part_entries(answers)


def _baseline_entries(outcomes: Sequence[Outcome], name: str) -> dict[str, Any]:
    """Results and cost of a baseline; of a network's ensemble, too (the others hardly depend on the seed)."""
    entry = {**baseline_entry(outcomes, name), "val_log_loss": val_log_loss(outcomes, name)}
    networks = isinstance(BASELINES[name], Network)
    return {name: entry} | (ensemble_entry(name, entry, [o.answers for o in outcomes]) if networks else {})


def require_known(names: Sequence[str]) -> tuple[str, ...]:
    """ConfigError if a name is not a baseline."""
    for name in names:
        if name not in BASELINES:
            raise ConfigError(f"unknown baseline {name!r}.", f"Known: {', '.join(BASELINES)}.")
    return tuple(names)
