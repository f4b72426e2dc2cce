"""Computes the intervals of stored results again, without training: paired differences of AUCs, and metrics.

    python benchmarks/intervals.py

Where the posteriors are stored, as in the accuracy benchmarks, differences, and metrics near 1, are drawn anew from them.
Of the curves over the training data only the seeds' differences are stored, with an interval that draws patients: the
chance of the trainings is squared and added to it (as in MOVER, Zou & Donner 2008, Stat Med 27:1693), once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from scorebayes.benchmark.names import BENCHMARKS, ENSEMBLE, PRETRAINED
from scorebayes.benchmark.stored.answers import Answers, mean_answers
from scorebayes.benchmark.stored.posteriors import class_indices, posteriors_path, read_posteriors
from scorebayes.benchmark.training.summary import adjusted_leads, summarise
from scorebayes.storage.atomic import write_atomically

RESULTS = Path(__file__).parent / "results"
ADDED = "bootstrap over patients, with the standard error over the seeds"
Z = 1.959964
SAME = 1e-3  # stored posteriors are rounded to 32 bits
NEAR = 0.99  # below it, the intervals of metrics are what they were


def from_posteriors(path: Path, found: dict[str, Any]) -> None:
    """Paired differences and intervals of metrics of an accuracy benchmark."""
    said, classes = read_posteriors(posteriors_path(path)), found["classes"]
    each = []
    for seed in found["seeds"]:
        rows = {model: frame for (model, of), frame in said.items() if of == seed}
        first = next(iter(rows.values()))
        prob = {m: f[[f"prob_{c}" for c in classes]].to_numpy(np.float64) for m, f in rows.items()}
        labels, positive = class_indices(first["label"], classes), classes.index(found["positive"])
        each.append(Answers(labels, tuple(first.index), tuple(first["patient_id"]), prob, positive))
    for ours, rivals in found["paired"].items():
        for rival, lead in adjusted_leads(each, ours, list(rivals)).items():
            if abs(lead["auc_difference"] - rivals[rival]["auc_difference"]) > SAME:
                raise SystemExit(f"{path}: {ours} minus {rival} is another difference than that stored.")
            del lead["auc_difference"], lead["auc_difference_values"]
            rivals[rival].update(lead)
    for model in each[0].prob:
        own, together = found["models"][model]["test"], found["models"].get(ENSEMBLE.format(model))
        if _near_the_edge(own):
            _renew(own, [answers.metrics(model) for answers in each])
        if together and _near_the_edge(together["test"]):
            _renew(together["test"], [mean_answers(each, model).metrics(model)])


def _near_the_edge(test: dict[str, Any]) -> bool:
    bounds = [bound for of in test.values() for bound in of.get("ci95") or ()]
    return max(bounds, default=0) > NEAR


def _renew(test: dict[str, Any], metrics: list[Any]) -> None:
    for metric, of in summarise(metrics)["test"].items():
        new, old = of.get("ci95"), test[metric].pop("ci95", None)
        same = new is not None and old is not None and np.allclose(new, old, rtol=0, atol=SAME)
        if new is not None:
            test[metric]["ci95"] = old if same else new


def with_the_seeds(lead: dict[str, Any]) -> None:
    """The interval and p of a difference of a curve; left alone where they know of the trainings."""
    values = lead["auc_difference_values"]
    if "auc_difference_method" in lead or len(values) < 2:
        return
    middle, (low, high) = lead["auc_difference"], lead["auc_difference_ci95"]
    seeds = Z * np.std(values, ddof=1) / np.sqrt(len(values))
    low, high = middle - np.hypot(middle - low, seeds), middle + np.hypot(high - middle, seeds)
    lead["auc_difference_ci95"] = [float(low), float(high)]
    lead.pop("auc_difference_p", None)
    lead["auc_difference_method"] = ADDED


def main() -> None:
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if path.stem in {*BENCHMARKS, *PRETRAINED}:
            from_posteriors(path, found)
        elif isinstance(found, dict) and "points" in found and "vary" in found:
            for point in found["points"]:
                for rivals in point["paired"].values():
                    for lead in rivals.values():
                        with_the_seeds(lead)
        else:
            continue
        write_atomically(path, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
