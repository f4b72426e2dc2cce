"""Explanations on disk: pictures, arrays and figures of the evidence in one file, or in the shown cases of a split.

Maps are drawn on the prepared image, which is what the model sees; they are not carried back to the geometry of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.data.pixels.images import SUFFIXES
from scorebayes.decision.decision import verdict
from scorebayes.errors import ConfigError, DataError, command
from scorebayes.evidence.base import Map
from scorebayes.explain.counterfactual import GUIDANCE, START, STEPS, Counterfactual, counterfactual
from scorebayes.explain.maps import SMOOTHING, Explanation, explain, smooth
from scorebayes.plots.svg import NEGATIVE, PAPER, POSITIVE
from scorebayes.progress import progress_bar
from scorebayes.runs.run import Run
from scorebayes.storage import sealed
from scorebayes.storage.arrays import read_arrays, write_arrays
from scorebayes.storage.atomic import replacing, write_atomically

CASES = "evidence.npz"
NAMED_PARTS, LONGEST_NAME = 3, 80  # of a path, in the name of its folder
DISCLAIMER = "Research software, not a medical device."
COLOURS = LinearSegmentedColormap.from_list("evidence", [NEGATIVE, PAPER, POSITIVE])
_OPACITY = 0.8  # of the strongest evidence
_COLUMNS = 4


def folder_of(run: Run, path: Path) -> Path:
    """Where the explanation of a file goes by default: the end of its path, so that one can read it, and a digest of the
    whole, because data sets call all their files ``1-1.dcm``. The same from call to call."""
    whole = path.resolve()
    named = whole.with_suffix("") if whole.suffix.lower() in SUFFIXES else whole
    parts = named.parts[1:][-NAMED_PARTS:]
    readable = re.sub(r"[^\w.+-]+", "_", "-".join(parts), flags=re.ASCII)[-LONGEST_NAME:].lstrip("-._")
    digest = hashlib.blake2b(os.fsencode(whole), digest_size=4).hexdigest()
    return run.path / "explained" / f"{readable}-{digest}"


def explain_file(
    run: Run,
    path: Path,
    out: Path,
    *,
    target: int | None = None,
    log_prior: NDArray | None = None,
    with_counterfactual: bool = True,
    log_snr: float = START,
    steps: int = STEPS,
    guidance: float | None = None,
) -> dict[str, Any]:
    """Write ``evidence.png``, ``evidence.npz``, ``evidence.json`` and ``counterfactual.png``; returns the JSON's content,
    with the names of the files that were written.

    target, log_prior: as in ``evidence.explain``. log_snr, steps, guidance: of the counterfactual; without ``guidance`` the
    default if the score was trained for it. Raises DataError if the file cannot be used. An atypical image is explained
    with a warning (key "warnings").
    """
    x, key, warning = run.read(path)
    evidence = explain(run, x, key, target, log_prior)
    other = None
    if with_counterfactual and run.has_image_score:
        source = int(evidence.posterior.predict()[0])
        if guidance is None:
            guidance = GUIDANCE if run.config.train.null_label > 0 else 0.0
        other = counterfactual(
            run, x, key, source, _runner_up(evidence, source),
            log_snr=log_snr, steps=steps, guidance=guidance, log_prior=log_prior,
        )  # fmt: skip
    content = _figures_of(run, evidence, other, log_prior) | {
        "file": str(path),
        "key": key,
        "warnings": [text for text in (warning, _atypical(run, x, evidence)) if text],
    }
    sealed.require_inside(out / "evidence.json")
    out.mkdir(parents=True, exist_ok=True)
    _draw_evidence(run, x, evidence, out / "evidence.png")
    arrays: dict[str, NDArray] = {
        "image": run.restore(x)[0],
        "total": evidence.total,
        "log_odds_map": evidence.log_odds_map,
        "std_error": evidence.std_error,
        **{name: part.levels for name, part in evidence.parts.items()},
        **{f"{name}_log_snr": part.log_snr for name, part in evidence.parts.items()},
    }
    if other is not None:
        arrays |= {"counterfactual": other.image, "difference": other.difference}
        _draw_counterfactual(run, x, other, out / "counterfactual.png")
    else:
        (out / "counterfactual.png").unlink(missing_ok=True)  # of an earlier call
    with replacing(out / "evidence.npz") as partial, partial.open("wb") as file:  # an output: not sealed
        np.savez_compressed(file, allow_pickle=False, **arrays)
    write_atomically(out / "evidence.json", json.dumps(content, indent=1, default=str) + "\n")
    drawn = ["evidence.png", *([] if other is None else ["counterfactual.png"])]
    return content | {"written": [*drawn, "evidence.npz", "evidence.json"]}


def explain_cases(run: Run, split: str) -> Path:
    """Write ``evidence.npz`` of a run: maps of the cases whose pictures ``evaluate`` kept, for the report.

    Keyed by the image ids, as the table of the split. Arrays: image_id [N], overlay [N, S, S, 3] uint8, total and std_error
    [N, S, S], log_odds, log_odds_std_error and offset [N], and for each source its name with _sums [N, L], by level, and
    _log_snr [N, L]. Raises DataError where there are no such pictures, or they are of another split.
    """
    pictures = run.path / "thumbnails.npz"
    if not pictures.exists():
        raise DataError(
            f"{pictures}: no cases have been chosen yet.",
            f"Run `{command('evaluate', run.path, '--split', split)}` first.",
        )
    wanted = [str(name) for name in read_arrays(pictures).get("image_id", ())]
    images = run.images(split)
    row_of = {key: row for row, key in enumerate(images.keys)}
    if not set(wanted) <= set(row_of):
        raise DataError(
            f"{pictures}: the pictures belong to another split, not to {split!r}.",
            f"Run `{command('evaluate', run.path, '--split', split)}` first.",
        )
    x = run.standardise(images.images[[row_of[name] for name in wanted]])
    found, overlays = [], []
    with progress_bar("explain", len(wanted)) as advance:
        for row, name in enumerate(wanted):
            found.append(explain(run, x[row : row + 1], name))
            overlays.append(overlay(_picture(run, x[row : row + 1]), smooth(found[-1].total)))
            advance(row + 1, "")
    path = run.path / CASES
    arrays: dict[str, NDArray] = dict(
        image_id=np.array(wanted, dtype=str),
        overlay=(np.stack(overlays) * 255 + 0.5).astype(np.uint8),
        total=np.stack([one.total for one in found]).astype(np.float32),
        std_error=np.stack([one.std_error for one in found]).astype(np.float32),
        target=np.array([one.target for one in found]),
        log_odds=np.array([one.log_odds for one in found]),
        log_odds_std_error=np.array([one.log_odds_std_error for one in found]),
        offset=np.array([one.offset for one in found]),
        **{
            f"{name}_{what}": np.stack([value(one.parts[name]) for one in found])
            for name in run.sources
            for what, value in {
                "sums": lambda part: part.levels.sum(axis=(1, 2)),
                "log_snr": lambda part: part.log_snr,
            }.items()
        },
    )
    write_arrays(path, arrays)
    return path


def read_class(name: str, run: Run) -> int | None:
    """The index of a named class; None for "". ConfigError for an unknown one."""
    classes = run.facts.classes
    if name and name not in classes:
        raise ConfigError(f"unknown class {name!r}.", f"The classes of this run are {', '.join(classes)}.")
    return classes.index(name) if name else None


def overlay(picture: NDArray, shown: Map, limit: float | None = None) -> NDArray[np.float64]:
    """Evidence on its image: picture [S, S, 3] in [0, 1], map [S, S] -> [S, S, 3] in [0, 1].

    The colours are centred at zero; ``limit``: evidence of full colour, by default the 99.5 % quantile of its size.
    """
    share = np.clip(shown / (_limit(shown) if limit is None else limit), -1, 1)
    opacity = _OPACITY * np.abs(share)[..., None]
    return (1 - opacity) * picture + opacity * COLOURS(0.5 + 0.5 * share)[..., :3]


def _limit(shown: Map) -> float:
    return max(float(np.quantile(np.abs(shown), 0.995)), 1e-12)


def _picture(run: Run, x: Tensor) -> NDArray:
    """[1, C, S, S] standardised -> [S, S, 3] in [0, 1]."""
    return np.broadcast_to(run.restore(x)[0].transpose(1, 2, 0), (*x.shape[2:], 3))


def _runner_up(evidence: Explanation, source: int) -> int:
    """The most probable class but ``source``."""
    log_prob = evidence.posterior.log_prob[0].copy()
    log_prob[source] = -np.inf
    return int(log_prob.argmax())


def _atypical(run: Run, x: Tensor, evidence: Explanation) -> str:
    judge = run.decision.typicality
    if judge is None:
        return ""
    distance = judge.distance(evidence.table, run.restore(x))
    if judge.is_typical(distance)[0]:
        return ""
    return (
        f"atypical: distance {distance[0]:.2f} from the training images, limit {judge.threshold:.2f}; "
        "'predict' gives no posterior for such an image"
    )


def _verdict(run: Run, evidence: Explanation, log_prior: NDArray | None) -> dict[str, Any]:
    """The decision at the frozen threshold, as ``predict`` makes it."""
    classes, positive = run.facts.classes, run.facts.info.positive
    decision = run.decision.under(run.log_prior if log_prior is None else log_prior, positive)
    above = bool(evidence.posterior.prob[0, positive] >= decision.threshold)
    return {
        "positive": classes[positive],
        "threshold": decision.threshold,
        "above_threshold": above,
        "decided": not bool(evidence.posterior.undecided(positive, decision.threshold)[0]),
        "verdict": verdict(classes, positive, above),
    }


def _figures_of(
    run: Run, evidence: Explanation, other: Counterfactual | None, log_prior: NDArray | None
) -> dict[str, Any]:
    total, classes = evidence.total, run.facts.classes
    positive, negative = float(total[total > 0].sum()), float(-total[total < 0].sum())
    size = positive + negative
    content: dict[str, Any] = {
        "note": DISCLAIMER,
        "target": classes[evidence.target],
        "posterior": dict(zip(classes, evidence.posterior.prob[0].tolist(), strict=True)),
        **_verdict(run, evidence, log_prior),
        "log_odds": evidence.log_odds,
        "log_odds_std_error": evidence.log_odds_std_error,
        "offset": evidence.offset,
        "evidence": float(total.sum()),
        "share_positive": positive / size if size else None,
        "share_negative": negative / size if size else None,
        "sources": {
            name: {
                "sum": float(part.total.sum()),
                "offset": part.offset,
                "levels": [
                    {
                        "log_snr": None if np.isnan(level) else float(level),
                        "sum": float(each.sum()),
                        "std_error": float(error),
                    }
                    for level, each, error in zip(
                        part.log_snr, part.levels, part.level_std_error, strict=True
                    )
                ],
            }
            for name, part in evidence.parts.items()
        },
        "settings": {
            "estimator": run.config.sections["likelihood"],
            "seed": run.config.seed,
            "made_by": run.maker(run.likelihood),
            "geometry": f"prepared image, {total.shape[1]} x {total.shape[0]} pixels",
            "smoothing_of_the_picture": SMOOTHING,
        },
    }
    if other is not None:
        content["counterfactual"] = {
            "from": classes[other.source],
            "to": classes[other.target],
            "posterior": dict(zip(classes, other.prob.tolist(), strict=True)),
            "rms_difference": float(np.sqrt(np.square(other.difference).mean())),
            "rms_round_trip": other.round_trip,
            "log_snr": other.log_snr,
            "steps": other.steps,
            "guidance": other.guidance,
        }
    return content


def _draw_evidence(run: Run, x: Tensor, evidence: Explanation, path: Path) -> None:
    """The image, its evidence, and below the evidence source by source and level by level, coarse to fine."""
    picture, name = _picture(run, x), run.facts.classes[evidence.target]
    titles, parts = [], []
    for source, maps in evidence.parts.items():
        for level, each, error in zip(maps.log_snr, maps.levels, maps.level_std_error, strict=True):
            where = source if np.isnan(level) else f"log-SNR {level:.1f}"
            titles.append(f"{where}: {each.sum():+.2f}" + (f" ± {error:.2f}" if error else ""))
            parts.append(smooth(each))
    rows = -(-len(parts) // _COLUMNS)
    figure: Any = Figure(figsize=(9, 3.6 + 2.2 * rows), layout="constrained")
    top, below = figure.subfigures(2, 1, height_ratios=[3.6, 2.2 * rows])
    left, right = top.subplots(1, 2)
    _show(left, picture, "image as the model sees it")
    total = smooth(evidence.total)
    _show(right, overlay(picture, total), f"evidence for (orange) and against (blue) {name}")
    _colour_bar(top, right, _limit(total))
    common = _limit(np.stack(parts))
    panels = below.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axis, part, title in zip(panels, parts, titles, strict=False):
        _show(axis, overlay(picture, part, common), title)
    for axis in panels[len(parts) :]:
        axis.set_visible(False)
    _colour_bar(below, list(panels[: len(parts)]), common)
    prob = evidence.posterior.prob[0, evidence.target]
    figure.suptitle(
        f"p({name}) = {prob:.3f}   log-odds {evidence.log_odds:+.2f} ± {evidence.log_odds_std_error:.2f} = "
        f"evidence {evidence.total.sum():+.2f} + offset {evidence.offset:+.2f}",
        fontsize=11,
        parse_math=False,
    )
    figure.supxlabel(f"{_data(run)}{DISCLAIMER} Maps are smoothed for display.", fontsize=7)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=130, format="png")


def _draw_counterfactual(run: Run, x: Tensor, other: Counterfactual, path: Path) -> None:
    """The image, the same as the other class, and the difference."""
    classes, picture = run.facts.classes, _picture(run, x)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots(1, 3)
    _show(axes[0], picture, f"image (predicted: {classes[other.source]})")
    changed = np.broadcast_to(other.image.transpose(1, 2, 0), picture.shape)
    _show(axes[1], changed, f"as {classes[other.target]}: p = {other.prob[other.target]:.3f}")
    difference = other.difference.mean(axis=0)
    limit = max(float(np.abs(difference).max()), 1e-12)
    _show(axes[2], COLOURS(0.5 + 0.5 * difference / limit), "difference (orange: brighter)")
    _colour_bar(figure, axes[2], limit, "grey value")
    figure.supxlabel(
        f"{_data(run)}{DISCLAIMER} This shows what the model believes, not what a disease does.", fontsize=7
    )
    with replacing(path) as partial:
        figure.savefig(partial, dpi=130, format="png")


def _show(axis: Axes, picture: NDArray, title: str) -> None:
    axis.imshow(picture, interpolation="nearest")
    axis.set_title(title, fontsize=8, parse_math=False)
    axis.set_axis_off()


def _colour_bar(figure: Any, axes: Any, limit: float, label: str = "nats of log-odds per pixel") -> None:
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), COLOURS), ax=axes, shrink=0.8)
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=7)


def _data(run: Run) -> str:
    return "Synthetic data. " if run.facts.info.synthetic else ""
