"""Do evidence maps show the decisive pixels? Compared with saliency maps of a network trained on the same images.

Lesion share: on the phantom, whose lesion is known, how much of a map lies in it, against the share of its area. Deletion
(Petsiuk et al. 2018, arXiv 1806.07421): the pixels that speak most for a class are replaced, strongest first; the sooner
the probability of the class falls, the better the map knew. Every map is judged by either model, so that neither is judged
by itself alone, and ours with the draws of another seed than those it was made of: a map would else be credited with their
chance. Another key would not do, since all images of a run may share their noise.

Saliencies: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) and integrated gradients (Sundararajan et al. 2017, arXiv
1703.01365), both of the log-odds of the class.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F

from scorebayes.baselines import Baseline, fit_baseline
from scorebayes.data.load import ImageSet
from scorebayes.data.sources.phantom import Phantom
from scorebayes.decision.posterior import bayes
from scorebayes.errors import ConfigError
from scorebayes.evidence.base import Map
from scorebayes.evidence.gradients import integrated_gradients
from scorebayes.explain.maps import explain, smooth
from scorebayes.metrics import clustered_bootstrap
from scorebayes.progress import progress_bar
from scorebayes.runs.device import environment
from scorebayes.runs.run import Run

OURS, CAM, GRADIENTS, RANDOM = "evidence", "grad-cam", "integrated-gradients", "random"
NETWORK = "resnet18"
DELETED = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # shares of the pixels
BLUR = 0.1  # of the side: standard deviation of the Gaussian that blurs the replaced pixels
GRADIENT_STEPS = 32

Judge = Callable[[Tensor, str], NDArray[np.float64]]
"""(standardised images [B, C, S, S], key) -> posterior [B, Y]."""


def measure_evidence(runs: Sequence[Run], images: int, *, steps: int | None = None) -> dict[str, Any]:
    """Lesion share (phantom runs) and deletion test on random test images of each run, ready for JSON.

    ``steps``: of the network's training; None: what the training of the score cost. A network that is trained already is
    used as it is.
    """
    return {
        "benchmark": "evidence",
        "runs": {run.facts.info.name: _measure(run, images, steps) for run in runs},
        "network": NETWORK,
        "deleted": DELETED,
        "judged_by": "draws of another seed than those that made the maps",
        "environment": environment(runs[0].device),
        "written": time.strftime("%Y-%m-%d"),
    }


def _measure(run: Run, limit: int, steps: int | None) -> dict[str, Any]:
    test = run.images("test").drawn(limit, run.config.seed)
    baseline = fit_baseline(run, NETWORK, steps)
    with progress_bar(f"evidence {run.facts.info.name}", 2 * len(test)) as advance:
        lesion = None
        if run.facts.info.name == "phantom":
            lesion = lesion_shares(run, baseline, test, lambda done: advance(done, "lesion share"))
        deletion = deletion_test(run, baseline, test, lambda done: advance(len(test) + done, "deletion"))
    return {
        "data": run.facts.info.title,
        "source": run.config.data.source.partition(":")[0],
        "images": len(test),
        "patients": len(set(test.patients)),
        "estimator": run.config.sections["likelihood"],
        "network_steps": baseline.record.get("steps"),
        "network_val_log_loss": baseline.calibration.log_loss,
        "own_val_log_loss": run.calibration.log_loss,
        "lesion": lesion,
        "deletion": deletion,
    }


# -- lesion share -------------------------------------------------------------------------------------------------------


def lesion_shares(
    run: Run, baseline: Baseline, test: ImageSet, advance: Callable[[int], None]
) -> dict[str, Any]:
    """How much of a map lies in the known lesion, against the share of its area and of the image's brightness.

    ``share``, ``share_positive``: of the size of the map, and of its positive part (for the true class), means over the
    images; both also after smoothing. With patient-bootstrap intervals, and the paired differences between ours and the
    others. A map that is zero everywhere counts as even. ConfigError where the images are not in the phantom's own geometry.
    """
    source = cast(Phantom, run.reader.source)
    if run.config.prepare.steps or run.config.prepare.size != source.size:
        raise ConfigError(
            f"lesions are known only in the original geometry of the phantom: {source.size} pixels, no preparation steps.",
            "Train a run without [prepare] size and steps.",
        )
    area, bright = [], []
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row, record in enumerate(test.records):
        x = run.standardise(test.images[row : row + 1])
        mask = source.mask(record)
        area.append((float(mask.mean()), 1.0))
        bright.append((_share_within(run.restore(x)[0].mean(axis=0), mask), 1.0))
        for method, shown in _maps(run, baseline, x, record.image_id, int(test.labels[row])).items():
            of = found.setdefault(method, {})
            for prefix, each in (("", shown), ("smoothed_", smooth(shown))):
                of.setdefault(f"{prefix}share", []).append((_share_within(np.abs(each), mask), 1.0))
                positive = _share_within(each.clip(min=0), mask)
                of.setdefault(f"{prefix}share_positive", []).append((positive, 1.0))
        advance(row + 1)
    return {
        "area": _summary(test.patients, area),
        "brightness": _summary(test.patients, bright),
        "methods": {
            method: {name: _summary(test.patients, parts) for name, parts in of.items()}
            for method, of in found.items()
        },
        "ours_minus": {
            method: {
                name: _summary(test.patients, found[OURS][name], minus=parts) for name, parts in of.items()
            }
            for method, of in found.items()
            if method != OURS
        },
    }


def _share_within(size: Map, mask: NDArray[np.bool_]) -> float:
    """Share of a map >= 0 in a mask; that of the area where the map is zero everywhere."""
    total = size.sum()
    return float(size[mask].sum() / total) if total > 0 else float(mask.mean())


# -- deletion -----------------------------------------------------------------------------------------------------------


def deletion_test(
    run: Run, baseline: Baseline, test: ImageSet, advance: Callable[[int], None]
) -> dict[str, Any]:
    """How the probability of the predicted class falls as the strongest pixels for it are replaced.

    Per judge, replacement and order: the mean curve over ``DELETED``, the area under it (mean over the shares; lower is
    better) with its patient-bootstrap interval, and what it is better than random order by, paired. Maps are smoothed
    first: single pixels replaced by their surroundings change nothing.
    """
    mean = torch.from_numpy(_mean_image(run))
    other = with_other_draws(run)
    judges: dict[str, Judge] = {
        "scorebayes": lambda x, key: _posterior(other, x, key),
        NETWORK: lambda x, _: torch.softmax(_no_grad(baseline.logits, x).cpu().double(), 1).numpy(),
    }
    curves: dict[str, dict[str, dict[str, list[NDArray]]]] = {}
    for row, record in enumerate(test.records):
        x = run.standardise(test.images[row : row + 1])
        fills = {"blurred": _blurred(x), "mean": mean}
        random = np.random.default_rng([run.config.seed, row]).random(x.shape[2:])
        for name, judge in judges.items():
            key = record.image_id
            target = int(judge(x, key)[0].argmax())
            maps = {method: smooth(found) for method, found in _maps(run, baseline, x, key, target).items()}
            for method, found in {**maps, RANDOM: random}.items():
                for fill, replacement in fills.items():
                    curve = judge(delete(x, found, replacement), key)[:, target]
                    curves.setdefault(name, {}).setdefault(fill, {}).setdefault(method, []).append(curve)
        advance(row + 1)
    return {
        name: {fill: _areas(of, test.patients) for fill, of in by_fill.items()}
        for name, by_fill in curves.items()
    }


def delete(x: Tensor, ranking: Map, replacement: Tensor) -> Tensor:
    """x [1, C, S, S] with the highest-ranking shares ``DELETED`` of its pixels replaced -> [len(DELETED), C, S, S]."""
    place = np.empty(ranking.size, dtype=np.int64)
    place[np.argsort(-ranking, axis=None, kind="stable")] = np.arange(ranking.size)
    gone = np.stack([place.reshape(ranking.shape) < round(share * ranking.size) for share in DELETED])
    return torch.where(torch.from_numpy(gone)[:, None], replacement, x)


def _areas(curves: Mapping[str, Sequence[NDArray]], patients: Sequence[str]) -> dict[str, Any]:
    area = {
        method: [(area, DELETED[-1]) for area in trapezoid(np.stack(of), DELETED, axis=1)]
        for method, of in curves.items()
    }
    return {
        method: {
            "curve": np.mean(of, axis=0).tolist(),
            "area": _summary(patients, area[method]),
            "below_random": _summary(patients, area[RANDOM], minus=area[method]),
        }
        for method, of in curves.items()
    }


def with_other_draws(run: Run) -> Run:
    """The run with every random number of its sources drawn anew; the same networks, calibration and images."""
    config = replace(run.config, seed=run.config.seed + 1)
    return Run(run.path, config, run.facts, run.device, run.format)


def _posterior(run: Run, x: Tensor, key: str) -> NDArray[np.float64]:
    table = run.evidence(x, [key] * len(x))
    return bayes(table, run.log_prior, run.calibration).prob


def _blurred(x: Tensor) -> Tensor:
    side = x.shape[-1]
    return torch.from_numpy(gaussian_filter(x.numpy(), BLUR * side, mode="nearest", axes=(2, 3)))


def _mean_image(run: Run) -> NDArray[np.float32]:
    """Mean over the classes of their mean training image, standardised [1, C, S, S]. It is evidence for no class."""
    train = run.images("train")
    of_class = [
        run.standardise(train.images[train.labels == y].mean(axis=0, keepdims=True)).numpy()
        for y in range(len(run.facts.classes))
    ]
    return np.mean(of_class, axis=0)


# -- maps ---------------------------------------------------------------------------------------------------------------


def _maps(run: Run, baseline: Baseline, x: Tensor, key: str, target: int) -> dict[str, Map]:
    """The map for class ``target`` in x [1, C, S, S], by each method: [S, S]."""
    assert baseline.feature_layer is not None  # a convolutional network has one
    return {
        OURS: explain(run, x, key, target).total,
        CAM: grad_cam(baseline.logits, baseline.feature_layer, x, target),
        GRADIENTS: integrated_gradients(
            lambda image: _log_odds(baseline.logits(image), target).sum(), x, GRADIENT_STEPS
        ),
    }


def grad_cam(logits: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor, target: int) -> Map:
    """x [1, C, S, S] -> [S, S] >= 0: the layer's feature maps, weighted by the mean gradient of the class's log-odds."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, features: kept.append(features))
    try:
        with torch.enable_grad():
            log_odds = _log_odds(logits(x.clone().requires_grad_()), target).sum()
            (slope,) = torch.autograd.grad(log_odds, kept[0])
    finally:
        handle.remove()
    cam = (slope.mean((2, 3), keepdim=True) * kept[0].detach()).sum(1, keepdim=True).relu()
    cam = F.interpolate(cam, size=x.shape[2:], mode="bilinear", align_corners=False)
    return cam[0, 0].cpu().double().numpy()


def _log_odds(logits: Tensor, target: int) -> Tensor:
    """[B, Y] -> log-odds of one class against the others [B]."""
    others = [y for y in range(logits.shape[1]) if y != target]
    return logits[:, target] - logits[:, others].logsumexp(1)


@torch.no_grad()
def _no_grad(logits: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return logits(x)


Ratios = Sequence[tuple[float, float]]
"""A part and a whole for each image; what is reported is the sum of the parts over the sum of the wholes."""


def _summary(patients: Sequence[str], parts: Ratios, minus: Ratios | None = None) -> dict[str, Any]:
    """The ratio over all images, less another one, with its 95 % interval by a bootstrap over patients.

    None where the wholes sum to nothing.
    """

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = weights @ np.asarray(parts)
        ratio = sums[:, 0] / sums[:, 1]
        if minus is not None:
            sums = weights @ np.asarray(minus)
            ratio = ratio - sums[:, 0] / sums[:, 1]
        return ratio

    with np.errstate(divide="ignore", invalid="ignore"):
        (value,) = statistic(np.ones((1, len(parts))))
        bounds = np.quantile(clustered_bootstrap(statistic, patients), [0.025, 0.975])
    return {
        "mean": float(value) if np.isfinite(value) else None,
        "ci95": bounds.tolist() if np.isfinite(bounds).all() else None,
    }
