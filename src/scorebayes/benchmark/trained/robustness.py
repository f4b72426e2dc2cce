"""How much do corrupted images cost? The model and the baselines of its run on the same corrupted test images.

Nothing is refitted: weights, calibration, threshold and typicality come from clean images, as in real use.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorebayes.baselines import BASELINES, open_baseline
from scorebayes.benchmark.trained.corruptions import CORRUPTIONS, SEVERITIES
from scorebayes.benchmark.trained.images import corrupted, score_images
from scorebayes.data.load import ImageSet
from scorebayes.decision.posterior import bayes
from scorebayes.errors import ConfigError
from scorebayes.metrics import compare, delong, holm
from scorebayes.plots.heat import as_file, heat_map
from scorebayes.progress import progress_bar
from scorebayes.runs.device import environment
from scorebayes.runs.run import Run
from scorebayes.storage.atomic import write_atomically

OURS = "ScoreBayes"
CLEAN = "clean"
_LEAST_PROB = 1e-12
_N_BOOTSTRAP = 1000


def measure_robustness(run: Run, images: int, severities: Sequence[int]) -> dict[str, Any]:
    """All models under every corruption and severity; also written to ``RUN/robustness.json``.

    images: test images, drawn at random, the same for all. The baselines are those that were trained in the run. ConfigError
    where a severity is unknown or a class is absent from the images.
    """
    if not severities or not set(severities) <= set(SEVERITIES):
        raise ConfigError(
            f"severities {list(severities)}: expected numbers from 1 to 5.",
            "Give some of them, such as 1,3,5.",
        )
    some = run.images("test").drawn(images, run.config.seed)
    positive = run.facts.info.positive
    if len(set(some.labels == positive)) < 2:
        raise ConfigError(f"the {len(some)} test images have only one class.", "Increase --images.")
    peers = {name: open_baseline(run, name) for name in BASELINES if _trained(run, name)}
    conditions = [(CLEAN, 0), *((name, severity) for name in CORRUPTIONS for severity in severities)]
    rows: list[dict[str, Any]] = []
    with progress_bar("robustness", len(conditions)) as advance:
        for done, (name, severity) in enumerate(conditions, 1):
            changed = some if name == CLEAN else corrupted(some, name, severity, run.config.seed)
            prob, declined = _ours(run, changed)
            of_peers = {peer: baseline.prob(changed) for peer, baseline in peers.items()}
            rows.append(
                {
                    "kind": name,
                    "severity": severity,
                    "declined": declined,
                    "models": {
                        model: _measures(some.labels, p, positive)
                        for model, p in ({OURS: prob} | of_peers).items()
                    },
                    "against": {
                        peer: compare(
                            some.labels,
                            prob,
                            p,
                            positive=positive,
                            groups=some.patients,
                            n_bootstrap=_N_BOOTSTRAP,
                        )
                        for peer, p in of_peers.items()
                    },
                }
            )
            advance(done, f"{name} {severity or ''}")
    for peer in peers:
        _adjust([row["against"][peer] for row in rows[1:]])
    content = {
        "run": run.path.resolve().name,
        "data": run.facts.info.title,
        "command": f"scorebayes benchmark robustness {run.path} --images {images} "
        f"--severities {','.join(map(str, severities))}",
        "written": time.strftime("%Y-%m-%d"),
        "images": len(some),
        "severities": list(severities),
        "baselines": list(peers),
        "conditions": rows,
        "summary": _summary(rows),
        "environment": environment(run.device),
    }
    run.write_json("robustness.json", content)
    return content


def _trained(run: Run, name: str) -> bool:
    return (run.path / "baselines" / name / "baseline.json").exists()


def _ours(run: Run, images: ImageSet) -> tuple[NDArray[np.float64], float | None]:
    """Posterior [N, Y], and the share of the images that prediction would decline as atypical (None: not judged)."""
    table = score_images(run, images, run.likelihood)
    prob = bayes(table, run.log_prior, run.calibration).prob
    judge = run.decision.typicality
    if judge is None:
        return prob, None
    distance = judge.distance(table, run.pixels(images))
    return prob, float((distance > judge.threshold).mean())


def _measures(labels: NDArray[np.int64], prob: NDArray[np.float64], positive: int) -> dict[str, float]:
    own = prob[np.arange(len(labels)), labels]
    return {
        "auc": delong(labels == positive, prob[:, positive])[0],
        "accuracy": float((prob.argmax(1) == labels).mean()),
        "log_loss": float(-np.log(np.maximum(own, _LEAST_PROB)).mean()),
    }


def _adjust(comparisons: Sequence[dict[str, Any]]) -> None:
    """Add to each comparison its p-value adjusted for the number of corruptions and severities."""
    for comparison, p in zip(comparisons, holm([c["auc_difference_p"] for c in comparisons]), strict=True):
        comparison["auc_difference_p_holm"] = float(p)


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over all corruptions and severities, per model, and what was lost against clean images.

    ``mean_corruption_error`` is relative, as Hendrycks & Dietterich define it (section 4.2): a model's errors over those of
    the first baseline, summed over severities, averaged over kinds. None without a baseline, or where that makes no error.
    """
    clean, changed = rows[0], rows[1:]
    models = list(clean["models"])
    kinds = list(dict.fromkeys(row["kind"] for row in changed))

    def errors(model: str, kind: str) -> float:
        return sum(1 - row["models"][model]["accuracy"] for row in changed if row["kind"] == kind)

    def relative(model: str) -> float | None:
        reference = [errors(models[1], kind) for kind in kinds] if len(models) > 1 else [0.0]
        if min(reference) <= 0:
            return None
        return float(np.mean([errors(model, kind) / r for kind, r in zip(kinds, reference, strict=True)]))

    return {
        model: {
            **{
                f"mean_{metric}": float(np.mean([row["models"][model][metric] for row in changed]))
                for metric in ("auc", "accuracy", "log_loss")
            },
            "auc_lost": clean["models"][model]["auc"]
            - float(np.mean([row["models"][model]["auc"] for row in changed])),
            "mean_corruption_error": relative(model),
        }
        for model in models
    }


def draw_robustness(content: Mapping[str, Any], path: Path) -> None:
    """The model's AUC by corruption and severity, as an SVG file."""
    kinds, severities, values = auc_grid(content, OURS)
    names = [str(severity) for severity in severities]
    low = min(0.5, float(values.min()))
    path.parent.mkdir(parents=True, exist_ok=True)
    svg = heat_map(values, kinds, names, "robustness", f"AUC of {OURS} under corruption", low)
    write_atomically(path, as_file(svg))


def auc_grid(content: Mapping[str, Any], model: str) -> tuple[list[str], list[int], NDArray[np.float64]]:
    """Kinds, severities and AUC [kinds, severities] of one model."""
    rows = {(row["kind"], row["severity"]): row["models"][model]["auc"] for row in content["conditions"]}
    kinds = list(dict.fromkeys(kind for kind, _ in rows if kind != CLEAN))
    severities = list(content["severities"])
    return kinds, severities, np.array([[rows[kind, severity] for severity in severities] for kind in kinds])
