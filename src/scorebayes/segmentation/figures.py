"""How masks are judged, image by image: overlap, distances between boundaries, calibration, coverage of the area."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scorebayes.segmentation.decision import MaskDecision, dice_of
from scorebayes.segmentation.drawn import Drawn

BINS = 15
DRAWS = 1000  # of the bootstrap
RULE = (
    "Dice, IoU and distances: mean over the images whose mask is not empty, as the literature has it; distances only where "
    "something was found, in pixels of the prepared image. 'dice_with_empty' counts an empty image as 1 where nothing was "
    "found and as 0 otherwise."
)


def each_image(
    drawn: Drawn, decision: MaskDecision, masks: NDArray[np.bool_], inside: NDArray[np.bool_]
) -> dict[str, NDArray]:
    """Figures of every image [N]; NaN where one is not defined. masks, inside [N, S, S]."""
    prob = decision.prob(drawn) * inside
    found: NDArray[np.bool_] = np.greater(prob, decision.threshold)
    dice, areas = dice_of(found, masks), decision.area(drawn, prob, inside)
    truth = masks.sum((1, 2)).astype(np.float64)
    there, both = masks.any((1, 2)), masks.any((1, 2)) & found.any((1, 2))
    hd95, asd = np.full(len(truth), np.nan), np.full(len(truth), np.nan)
    if both.any():
        one, other = (torch.from_numpy(of[both])[:, None].float() for of in (found, masks))
        hd95[both], asd[both] = _boundary_distances(one, other)
    figures = {
        "dice": np.where(there, dice, np.nan),
        "iou": np.where(there, dice / (2 - dice), np.nan),
        "hd95": hd95,
        "asd": asd,
        "dice_with_empty": dice,
        "area": truth,
        "area_found": areas[:, 0],
        "area_low": areas[:, 1],
        "area_high": areas[:, 2],
        "covered": ((truth >= areas[:, 1]) & (truth <= areas[:, 2])).astype(np.float64),
    }
    if drawn.sampled:
        low, high = np.quantile(drawn.areas, [0.025, 0.975], axis=1)
        figures["covered_by_samples"] = ((truth >= low) & (truth <= high)).astype(np.float64)
    return figures


def _boundary_distances(one: torch.Tensor, other: torch.Tensor) -> tuple[NDArray, NDArray]:
    """95th percentile of the Hausdorff distance and mean symmetric surface distance, [N] each, by MONAI."""
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MONAI about its own arguments
        hd95 = compute_hausdorff_distance(one, other, include_background=True, percentile=95)
        asd = compute_average_surface_distance(one, other, include_background=True, symmetric=True)
    return hd95[:, 0].numpy(), asd[:, 0].numpy()


def summary(
    drawn: Drawn, decision: MaskDecision, masks: NDArray[np.bool_], inside: NDArray[np.bool_], seed: int = 0
) -> dict[str, Any]:
    """Means over images with bootstrap intervals, by image, and figures over all pixels."""
    figures = each_image(drawn, decision, masks, inside)
    names = ("dice", "iou", "hd95", "asd", "dice_with_empty")
    found: dict[str, Any] = {"images": len(masks), "with_object": int(masks.any((1, 2)).sum()), "rule": RULE}
    for name in names:
        known = figures[name][~np.isnan(figures[name])]
        found[name] = float(known.mean()) if len(known) else None
        found[f"{name}_ci95"] = bootstrap(known, seed)
    prob = decision.prob(drawn)
    empty = ~masks.any((1, 2))
    found_any = np.any(np.greater(prob * inside, decision.threshold), axis=(1, 2))
    width = figures["area_high"] - figures["area_low"]
    return found | {
        "missed": int((~found_any & ~empty).sum()),
        "empty_found_empty": float(1 - found_any[empty].mean()) if empty.any() else None,
        "pixel_ece": pixel_ece(prob[inside], masks[inside]),
        "pixel_log_loss": _log_loss(prob[inside], masks[inside]),
        "coverage": float(figures["covered"].mean()),
        "coverage_aim": decision.coverage,
        "coverage_by_samples": float(figures["covered_by_samples"].mean()) if drawn.sampled else None,
        "area_interval_width": float(width.mean()),
        "area_error": float(np.abs(figures["area_found"] - figures["area"]).mean()),
        "seconds_per_image": float(drawn.seconds.mean()),
    }


def bootstrap(values: NDArray[np.float64], seed: int = 0) -> list[float] | None:
    """95 % interval of a mean over images, by drawing them anew; None of fewer than two."""
    if len(values) < 2:
        return None
    rows = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    return [float(q) for q in np.quantile(values[rows].mean(axis=1), [0.025, 0.975])]


def pixel_ece(prob: NDArray, inside: NDArray[np.bool_]) -> float:
    """Expected calibration error over pixels, in bins of equal width (Guo et al. 2017, arXiv 1706.04599)."""
    place = np.minimum((prob * BINS).astype(int), BINS - 1)
    said = np.bincount(place, weights=prob, minlength=BINS)
    true = np.bincount(place, weights=inside, minlength=BINS)
    return float(np.abs(said - true).sum() / max(1, len(prob)))


def _log_loss(prob: NDArray, inside: NDArray[np.bool_]) -> float:
    prob = np.clip(prob, 1e-7, 1 - 1e-7)
    return float(-np.mean(np.where(inside, np.log(prob), np.log1p(-prob))))
