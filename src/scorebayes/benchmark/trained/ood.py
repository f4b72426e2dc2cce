"""Does the model decline foreign images? Typicality compared with the raw likelihood, kind by kind.

Nothing is chosen here: the judge of typicality is fitted on training and validation images, and the low-likelihood rule is
given, on validation images, the share of false alarms that typicality has there.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from scorebayes.benchmark.trained.foreign import FOREIGN, pictures
from scorebayes.benchmark.trained.images import as_images, foreign, score_images, split_table
from scorebayes.data.load import ImageSet
from scorebayes.decision.posterior import bayes
from scorebayes.decision.table import EvidenceTable
from scorebayes.decision.typicality import SHARE_FLAGGED, Typicality, fit_typicality
from scorebayes.diffusion.likelihood import DenoisingBound
from scorebayes.metrics import delong, risk_coverage, wilson
from scorebayes.progress import progress_bar
from scorebayes.runs.device import environment
from scorebayes.runs.run import Run
from scorebayes.tasks.classify import reference_pixels


def measure_ood(run: Run, images: int, data_root: Path) -> dict[str, Any]:
    """Share flagged and AUC of every kind of foreign image; also written to ``RUN/ood.json``.

    images: how many of every kind, and how many test and validation images the likelihood is computed of; typicality is
    judged on all test images. The data root is searched for other modalities
    (``scorebayes.benchmark.trained.foreign.pictures``)."""
    seed, bound = run.config.seed, DenoisingBound()
    test, val = run.images("test"), run.images("val")
    judge, stored = _judge(run, val)
    some, some_val = test.drawn(images, seed), val.drawn(images, seed)
    found = pictures(data_root, run.facts.info.name, images, np.random.default_rng(seed))
    kinds = {name: (foreign(some, name, seed), 0) for name in FOREIGN}
    kinds |= {name: as_images(run, files, name) for name, files in found.items()}
    with progress_bar("ood", len(kinds) + 2) as advance:
        # As many false alarms on validation images as typicality aims at.
        limit = float(np.quantile(_nats(run, some_val, bound), SHARE_FLAGGED))
        advance(1, "validation images")
        table = split_table(run, test, "test")
        here = _Measures(judge.distance(table, run.pixels(test)), _nats(run, some, bound))
        advance(2, "test images")
        rows = {}
        for done, (name, (strange, refused)) in enumerate(kinds.items(), 3):
            rows[name] = _row(run, judge, bound, here, strange, refused, limit)
            advance(done, name)
    typical = here.distance <= judge.threshold
    content = {
        "run": run.path.resolve().name,
        "data": run.facts.info.title,
        "command": f"scorebayes benchmark ood {run.path} --images {images}",
        "written": time.strftime("%Y-%m-%d"),
        "in_distribution": {
            "n": len(test),
            "flagged": float((~typical).mean()),
            "flagged_ci95": wilson(int((~typical).sum()), len(test)),
            "flagged_by_levels": float((judge.level_distance(table) > judge.threshold).mean()),
            "flagged_by_likelihood": float((here.nats < limit).mean()),
            "n_likelihood": len(some),
        },
        "kinds": rows,
        "worst_flagged": min(row["flagged"] for row in rows.values()),
        "limits": {"distance": judge.threshold, "nats": limit},
        "judged_by_prediction": stored,
        "coverage": _coverage(run, test, table, typical),
        "estimators": {"typicality": repr(run.likelihood), "likelihood": repr(bound)},
        "environment": environment(run.device),
    }
    run.write_json("ood.json", content)
    return content


def _coverage(run: Run, test: ImageSet, table: EvidenceTable, typical: NDArray[np.bool_]) -> dict[str, Any]:
    """Coverage and risk of the test images, of all and of the typical ones (both shares are of all of them)."""
    posterior = bayes(table, run.log_prior, run.calibration)
    curves = {}
    for name, rows in (("all", np.ones(len(test), dtype=bool)), ("typical", typical)):
        curve = risk_coverage(test.labels[rows], posterior.prob[rows])
        curves[name] = {
            "coverage": (curve["coverage"] * rows.mean()).tolist(),
            "risk": curve["risk"].tolist(),
        }
    undecided = posterior.undecided(run.facts.info.positive, run.decision.threshold)
    return {**curves, "undecided": int(undecided.sum())}


def _judge(run: Run, val: ImageSet) -> tuple[Typicality, bool]:
    """The run's judge of typicality, and whether prediction uses it.

    A run calibrated before the appearance was judged gets one fitted on the same images as it would be today.
    """
    stored = run.decision.typicality
    if stored is not None and stored.appearance is not None:
        return stored, True
    table = split_table(run, val, "val")
    images, patients = reference_pixels(run)
    return fit_typicality(table, images=images, patients=patients, seed=run.config.seed), False


class _Measures(NamedTuple):
    """Of N images: distance from what is typical, and log-likelihood in nats."""

    distance: NDArray[np.float64]
    nats: NDArray[np.float64]


def _nats(run: Run, images: ImageSet, bound: DenoisingBound) -> NDArray[np.float64]:
    """log p(x), the classes weighted by the prior [N]."""
    return logsumexp(score_images(run, images, bound).only.nats + run.log_prior, axis=1)


def _row(
    run: Run,
    judge: Typicality,
    bound: DenoisingBound,
    here: _Measures,
    images: ImageSet,
    refused: int,
    limit: float,
) -> dict[str, Any]:
    """One kind. What preparation refuses counts as flagged, and is left out of the AUC."""
    n, row = len(images) + refused, {"n": len(images) + refused, "refused": refused}
    if not len(images):
        return {**row, "flagged": 1.0, "flagged_by_likelihood": 1.0}
    table = score_images(run, images, run.likelihood)
    there = _Measures(judge.distance(table, run.pixels(images)), _nats(run, images, bound))
    flagged = int((there.distance > judge.threshold).sum()) + refused
    by_levels = int((judge.level_distance(table) > judge.threshold).sum()) + refused
    low = int((there.nats < limit).sum()) + refused
    return {
        **row,
        "flagged": flagged / n,
        "flagged_ci95": wilson(flagged, n),
        "flagged_by_levels": by_levels / n,
        "auc": _auc(here.distance, there.distance),
        "flagged_by_likelihood": low / n,
        "auc_by_likelihood": _auc(-here.nats, -there.nats),
        "median_nats_above_test_images": float(np.median(there.nats) - np.median(here.nats)),
    }


def _auc(here: NDArray, there: NDArray) -> float:
    return delong(np.r_[np.zeros(len(here), bool), np.ones(len(there), bool)], np.r_[here, there])[0]
