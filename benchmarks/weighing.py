"""How several sources of evidence are weighed, on folds of training images: are all together ever much worse than the best?

    python benchmarks/weighing.py --data-root ../shared/data

Pseudo data sets are cut from the official training and validation images of five sets (60 % to train, 15 % to calibrate,
25 % to judge, by patient or by near-copies), and from synthetic mammograms. No official test image is touched. A short
training for each (about 2 minutes on a core; what is there is not trained again) gives the evidence tables. Three ways of
weighing them are then judged, with all calibration images and with few: the rule of ``scorebayes.decision.calibration``,
the rule before it (one fit, a weak pull of both sources towards each other), and the source with the lowest validation
log-loss alone. Writes ``benchmarks/results/weighing.json``; docs/decisions/0021 says what follows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import log_loss, roc_auc_score

from scorebayes.decision.calibration import (
    PENALTIES,
    _centred,
    _cross_fitted_losses,
    _fit,
    _heaviest_that_may_be_best,
    _Images,
    _pull,
    _spread,
    fit_calibration,
)
from scorebayes.decision.posterior import bayes
from scorebayes.decision.table import EvidenceTable
from scorebayes.runs.device import environment
from scorebayes.runs.run import open_run
from scorebayes.stages.score import read_table, score_split
from scorebayes.stages.train import train
from scorebayes.storage.atomic import write_atomically

RESULT = Path(__file__).parent / "results" / "weighing.json"
TRAIN = {"batch": 32, "ema": 0.99, "val_images": 128, "validate_every": 200, "warmup": 30}
SETS: dict[str, dict[str, Any]] = {
    "breast28": {"file": "medmnist/breastmnist.npz", "steps": 600},
    "breast64": {"file": "busi/breastmnist_64.npz", "steps": 400, "batch": 16, "patch": 4},
    "pneumonia": {"file": "medmnist/pneumoniamnist.npz", "steps": 400, "images": 700},
    "retina": {"file": "medmnist/retinamnist.npz", "steps": 400},
    "ddsm64": {"file": "ddsm64/ddsm64.npz", "steps": 400, "batch": 16, "patch": 4, "images": 900},
    "phantom": {"steps": 300},
}
SEEDS = range(3)
FRACTIONS = (0.60, 0.15)
TWINS = 2.5  # root-mean-square difference in grey levels, below which pictures are copies of each other
SIZES, DRAWS = (80, 40, 20), 5


def pseudo_set(root: Path, out: Path, name: str, seed: int) -> str:
    """A source of training images alone, split anew."""
    asked = SETS[name]
    if "file" not in asked:
        return f"phantom:n_patients=400,views=1,size=32,seed={seed}"
    path = out / f"{name}-{seed}.npz"
    if not path.exists():
        images, labels, groups = _training_images(root / asked["file"], asked.get("images"))
        split = _split(labels, groups, np.random.default_rng(1000 + seed))
        out.mkdir(parents=True, exist_ok=True)
        patients = np.array([f"p{group}" for group in groups])
        classes = np.array([str(y) for y in range(labels.max() + 1)])
        np.savez(path, images=images, labels=labels, classes=classes, patients=patients, split=split)
    return f"arrays:{path.resolve()}"


def _training_images(path: Path, most: int | None) -> tuple[NDArray, NDArray[np.int64], NDArray]:
    arrays, rng = np.load(path), np.random.default_rng(0)
    if "patient_group" in arrays:
        known = arrays["labels"] >= 0
        images, labels, groups = (arrays[key][known] for key in ("images", "labels", "patient_group"))
        order = rng.permutation(np.unique(groups))
        counts = np.cumsum([(groups == group).sum() for group in order])
        rows = np.isin(groups, order[: 1 + int((counts < (most or len(images))).sum())])
        return images[rows], labels[rows].astype(int), groups[rows]
    parts = ("train", "val")
    images = np.concatenate([arrays[f"{part}_images"] for part in parts])
    labels = np.concatenate([arrays[f"{part}_labels"] for part in parts])[:, 0].astype(int)
    rows = rng.permutation(len(labels))[:most] if most else np.arange(len(labels))
    images, labels = images[rows], labels[rows]
    grey = images.mean(axis=3) if images.ndim == 4 else images
    flat = grey.reshape(len(grey), -1).astype(float)
    near = squareform(pdist(flat)) / np.sqrt(flat.shape[1]) < TWINS
    return images, labels, connected_components(near)[1]


def _split(labels: NDArray[np.int64], groups: NDArray, rng: np.random.Generator) -> NDArray[np.str_]:
    """Class by class (of a group: the class of its first image), whole groups on one side."""
    found = np.empty(len(labels), "<U5")
    names, first = np.unique(groups, return_index=True)
    for y in np.unique(labels):
        own = rng.permutation(names[labels[first] == y])
        ends = [round(FRACTIONS[0] * len(own)), round(sum(FRACTIONS) * len(own))]
        for part, of in zip(("train", "val", "test"), np.split(own, ends), strict=True):
            found[np.isin(groups, of)] = part
    return found


def tables(root: Path, runs: Path, name: str, seed: int) -> tuple[EvidenceTable, EvidenceTable]:
    """Evidence of the images to calibrate on and to judge by; trained and scored unless that was done before."""
    path, asked = runs / f"{name}-{seed}", SETS[name]
    if not (path / "calibration.json").exists():
        settings = TRAIN | {"steps": asked["steps"], "batch": asked.get("batch", TRAIN["batch"])}
        layer = {"seed": seed, "train": settings, "net": {"patch": asked.get("patch", 2)}}
        if name == "phantom":
            layer["data"] = {"fractions": [0.35, 0.2, 0.45]}
        source = pseudo_set(root, runs / "data", name, seed)
        train(path, source, [layer], "light", torch.device("cpu"), resume=path.exists())
    run = open_run(path, "cpu")
    score_split(run, "test")
    val, test = (read_table(run, split).usable() for split in ("val", "test"))
    patients = run.split.set_index("image_id")["patient_id"]
    return tuple(t.with_labels(t.labels, tuple(patients.reindex(list(t.keys)))) for t in (val, test))


def as_before(val: EvidenceTable, test: EvidenceTable, log_prior: NDArray) -> NDArray:
    """The rule before: the weights of all levels in one fit; the sums of two sources' weights weakly pulled together."""
    means = np.concatenate([block.level_means for block in val.blocks.values()], axis=1)
    sizes, spread = [block.n_levels for block in val.blocks.values()], _spread(means)
    z, images = _centred(means) / spread[:, None], _Images({}, val.labels, log_prior, np.arange(len(val)))
    of = np.repeat(np.arange(len(sizes)), sizes)

    def pull(penalty: float) -> NDArray:
        form = 0.01 * np.eye(len(of))
        for source, n in enumerate(sizes):
            form[np.ix_(of == source, of == source)] += _pull(penalty, n, False) - 0.01 * np.eye(n)
        sides = np.where(of == 0, -1.0, 1.0)
        return form + np.outer(sides, sides)

    forms = [pull(penalty) for penalty in PENALTIES]
    parts = images.folds(5, 0)
    losses = np.stack([_cross_fitted_losses(z, val.labels, log_prior, form, parts) for form in forms])
    weights, bias = _fit(z, val.labels, log_prior, forms[_heaviest_that_may_be_best(losses)])
    there = np.concatenate([block.level_means for block in test.blocks.values()], axis=1)
    logits = np.einsum("nly,l->ny", there, weights / spread) + bias + log_prior
    return np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def probabilities(val: EvidenceTable, test: EvidenceTable) -> dict[str, NDArray]:
    """Posteriors of the images to judge by, by each rule and by each source alone."""
    log_prior = val.log_shares
    alone = {name: fit_calibration(val.alone(name), log_prior) for name in val.blocks}
    found = {name: bayes(test.alone(name), log_prior, of).prob for name, of in alone.items()}
    best = min(alone, key=lambda name: alone[name].log_loss)
    return {
        **found,
        "together": bayes(test, log_prior, fit_calibration(val, log_prior)).prob,
        "before": as_before(val, test, log_prior),
        "best on validation": found[best],
    }


def judged(labels: NDArray[np.int64], prob: NDArray) -> dict[str, float]:
    auc = roc_auc_score(labels, prob[:, 1] if prob.shape[1] == 2 else prob, multi_class="ovr")
    return {"auc": float(auc), "log_loss": float(log_loss(labels, prob, labels=range(prob.shape[1])))}


def some_of(val: EvidenceTable, size: int, draw: int) -> EvidenceTable | None:
    """So many images, classes by their shares, at least 3 of each; None where there are not enough."""
    if size >= len(val):
        return None
    rng, rows = np.random.default_rng([size, draw]), []
    for y, n in enumerate(np.bincount(val.labels)):
        rows.append(rng.permutation(np.flatnonzero(val.labels == y))[: max(3, round(size * n / len(val)))])
    return val.rows(np.sort(np.concatenate(rows)))


def measure(root: Path, runs: Path) -> dict[str, Any]:
    """AUC and log-loss of every rule in every run, minus those of the best source in hindsight."""
    rows = []
    for name in SETS:
        for seed in SEEDS:
            val, test = tables(root, runs, name, seed)
            cases = [("whole", val)]
            cases += [
                (str(n), some)
                for n in SIZES
                for d in range(DRAWS)
                if (some := some_of(val, n, d)) is not None
            ]
            for size, some in cases:
                found = {rule: judged(test.labels, prob) for rule, prob in probabilities(some, test).items()}
                rows.append({"set": name, "seed": seed, "size": size, "images": len(some), "rules": found})
    return {
        "rows": rows,
        "summary": {rule: _summary(rows, rule) for rule in ("together", "before", "best on validation")},
    }


def _summary(rows: list[dict[str, Any]], rule: str) -> dict[str, Any]:
    """By number of calibration images: mean over the runs of the gain over the best source in hindsight, its standard error,
    and the worst run. Above 0 is better, for the log-loss, too."""
    found: dict[str, Any] = {}
    signs: dict[str, Callable[[float, float], float]] = {
        "auc": lambda a, b: a - b,
        "log_loss": lambda a, b: b - a,
    }
    for size in ("whole", *map(str, SIZES)):
        for metric, gain in signs.items():
            by_run: dict[tuple[str, int], list[float]] = {}
            for row in rows:
                if row["size"] == size:
                    rules = row["rules"]
                    alone = [rules[name][metric] for name in ("pixels", "wavelets")]
                    best = max(alone) if metric == "auc" else min(alone)
                    by_run.setdefault((row["set"], row["seed"]), []).append(gain(rules[rule][metric], best))
            means = np.array([np.mean(of) for of in by_run.values()])
            found.setdefault(size, {})[metric] = {
                "mean": float(means.mean()),
                "std_error": float(means.std(ddof=1) / np.sqrt(len(means))),
                "worst": float(means.min()),
                "runs": len(means),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--runs", type=Path, default=Path("runs/weighing"))
    asked = parser.parse_args()
    content = measure(asked.data_root, asked.runs) | {
        "command": "python benchmarks/weighing.py",
        "environment": environment(torch.device("cpu")),
        "written": time.strftime("%Y-%m-%d"),
    }
    write_atomically(RESULT, json.dumps(content, indent=1) + "\n")
    sys.stdout.write(json.dumps(content["summary"], indent=1) + "\n")


if __name__ == "__main__":
    main()
