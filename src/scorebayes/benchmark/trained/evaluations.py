"""AUC against network evaluations, for every estimator on the same test images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from scorebayes.benchmark.trained.contest import (
    Contestant,
    at_its_word,
    paper_at_best,
    parts_folder,
    some_images,
    take_turns,
    trained_log_snr_max,
)
from scorebayes.data.load import ImageSet
from scorebayes.decision.calibration import fit_calibration
from scorebayes.decision.posterior import bayes
from scorebayes.decision.table import EvidenceTable
from scorebayes.diffusion.likelihood import Denoising, DenoisingBound, Flow
from scorebayes.errors import ConfigError
from scorebayes.metrics import classification_metrics
from scorebayes.runs.run import Run
from scorebayes.stages.sequential import Sequential

EVALUATIONS_PER_LEVEL = 8
CURVES: dict[str, dict[int, Any]] = {
    "probability flow, Heun": {n: Flow("heun", n, mode="reverse") for n in (4, 8, 16)},
    "probability flow, RK4": {n: Flow("rk4", n, mode="reverse") for n in (4, 8)},
    "probability flow, Dormand-Prince": {n: Flow("dopri5", n, mode="reverse") for n in (4, 8, 16)},
}
TARGET_ERRORS = (0.5, 0.2, 0.05, 0.01)


@dataclass(frozen=True)
class _Point:
    """One estimator at one cost: evaluations per class, AUC with interval, log-loss and ECE of the calibrated posterior."""

    evaluations: float
    prob: NDArray[np.float64]
    labels: NDArray[np.int64]
    positive: int

    def to_dict(self) -> dict[str, Any]:
        metrics = classification_metrics(self.labels, self.prob, positive=self.positive)
        names = ("auc", "auc_ci95", "accuracy", "log_loss", "ece")
        return {"evaluations_per_class": self.evaluations, **{name: metrics[name] for name in names}}


def measure_curves(run: Run, images: int, val_images: int, flow_images: int) -> dict[str, Any]:
    """AUC, log-loss and calibration against evaluations per class, for every estimator, on the same test images.

    The estimators that need weights are calibrated on ``val_images`` of the validation split, anew for every number of
    draws. Values in nats are taken over the noise levels that the network was trained on, for the bound over all levels
    too; the flow, which costs most, sees ``flow_images``.
    """
    own: Any = run.likelihood
    if own.kind != Denoising.kind:
        raise ConfigError(f"{run.path}: the curves need a run with the estimator 'denoising'.")
    test = some_images(run.images("test"), images, run.config.seed)
    val = some_images(run.images("val"), val_images, run.config.seed)
    scored: dict[str, Denoising] = {
        "class score": replace(own, repeats=_passes(own)),
        "class score, noise by image": replace(own, repeats=_passes(own), common_noise=False),
        "class score, independent draws": replace(
            own, repeats=EVALUATIONS_PER_LEVEL, common_noise=False, antithetic=False
        ),
    }
    on_val, _ = take_turns(run, val, [Contestant(k, v, len(val)) for k, v in scored.items()], "validation")
    bound = DenoisingBound(levels=own.levels, repeats=EVALUATIONS_PER_LEVEL)
    highest = trained_log_snr_max(run)
    nats = [
        Contestant("bound", bound, len(test), highest),
        Contestant("bound, all noise levels", bound, len(test)),
    ]
    on_test, _ = take_turns(
        run, test, [*(Contestant(k, v, len(test)) for k, v in scored.items()), *nats], "test"
    )
    positive = run.facts.info.positive
    curves: dict[str, list[_Point]] = {}
    for name in scored:
        passes = range(1, scored[name].repeats + 1)
        curves[name] = [_calibrated(run, on_test[name], on_val[name], p) for p in passes]
    for each in nats:
        shorter = [_first_passes(on_test[each.name], own.levels, p) for p in (1, 2, 4, EVALUATIONS_PER_LEVEL)]
        curves[each.name] = [_as_it_is(table, positive) for table in shorter]
    curves["sequential"] = [
        _sequential(run, own, on_test["class score"], on_val["class score"], error) for error in TARGET_ERRORS
    ]
    flows = [
        Contestant(f"{name}, {n} steps", flow, min(flow_images, len(test)), highest)
        for name, by_steps in CURVES.items()
        for n, flow in by_steps.items()
    ]
    on_flow, _ = take_turns(run, test, flows, "flow")
    for name, by_steps in CURVES.items():
        curves[name] = [_as_it_is(on_flow[f"{name}, {n} steps"], positive) for n in by_steps]
    paper = _paper_so_far(run, test)
    if paper is not None:
        curves["the paper's computation"] = [_as_it_is(paper, positive)]
    return {
        "run": str(run.path),
        "test_images": len(test),
        "val_images": len(val),
        "flow_images": flows[0].images,
        "curves": {name: [point.to_dict() for point in points] for name, points in curves.items() if points},
        "seed": run.config.seed,
        "command": f"scorebayes benchmark curves {run.path} --images {images}",
        "written": time.strftime("%Y-%m-%d %H:%M"),
    }


def _passes(estimator: Denoising) -> int:
    """Over the noise levels, for all evaluations."""
    return EVALUATIONS_PER_LEVEL // (2 if estimator.antithetic else 1)


def _first_passes(table: EvidenceTable, levels: int, passes: int) -> EvidenceTable:
    """What the estimator of a table of one source would have given with fewer repeats: its draws come pass by pass."""
    (name, block), kept = next(iter(table.blocks.items())), slice(0, levels * passes)
    share = len(block.level[kept]) / len(block.level)
    fewer = replace(
        block,
        draws=block.draws[kept],
        log_snr=block.log_snr[kept],
        level=block.level[kept],
        nfe=np.round(block.nfe * share).astype(np.int64),
    )
    return replace(table, blocks={name: fewer})


def _calibrated(run: Run, test: EvidenceTable, val: EvidenceTable, passes: int) -> _Point:
    levels = test.only.n_levels
    test, val = (_first_passes(table, levels, passes).usable() for table in (test, val))
    calibration = fit_calibration(val, val.log_shares, seed=run.config.seed)
    prob = bayes(test, run.log_prior, calibration).prob
    return _Point(float(test.nfe.mean()), prob, test.labels, run.facts.info.positive)


def _as_it_is(table: EvidenceTable, positive: int) -> _Point:
    """Log-likelihoods without calibration, at a uniform prior."""
    table = table.usable()
    return _Point(float(table.nfe.mean()), at_its_word(table).prob, table.labels, positive)


@dataclass(frozen=True)
class _Replay:
    """Stands for a source whose draws are in a table already: the same passes, without the network."""

    table: EvidenceTable
    levels: int
    evaluations: int
    name: str = "score"

    def passes(
        self, x: Tensor, keys: Sequence[str], numbers: range, classes: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        row, block = self.table.keys.index(keys[0]), self.table.only
        kept = slice(numbers.start * self.levels, numbers.stop * self.levels)
        values, log_snr = block.draws[kept, row : row + 1], block.log_snr[kept, row : row + 1]
        return (values if classes is None else values[..., classes]), log_snr


def _sequential(
    run: Run, own: Denoising, test: EvidenceTable, val: EvidenceTable, target_error: float
) -> _Point:
    """Sequential decisions, with the calibration that the default number of draws has on validation images."""
    few = _first_passes(val, own.levels, own.repeats).usable()
    calibration = fit_calibration(few, few.log_shares, seed=run.config.seed)
    test = test.usable()
    replay: Any = _Replay(test, own.levels, 2 if own.antithetic else 1)
    rule = Sequential(calibration, run.log_prior, [replay], _passes(own), target_error)
    result = rule(torch.empty(len(test)), test.keys)
    return _Point(
        float(result.evaluations.mean()) / test.n_classes,
        result.posterior.prob,
        test.labels,
        run.facts.info.positive,
    )


def _paper_so_far(run: Run, test: ImageSet) -> EvidenceTable | None:
    """What the speed benchmark has stored of the paper's computation on these images."""
    folder = parts_folder(run, test, paper_at_best(run, len(test)))
    table = EvidenceTable.read(folder) if any(folder.glob("part-*.parquet")) else None
    return table if table is not None and len(set(table.labels.tolist())) > 1 else None


def draw_curves(measured: Mapping[str, Any], path: Path) -> None:
    """The figure of ``measure_curves`` as SVG: AUC and log-loss against evaluations per class."""
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "scorebayes", "font.size": 9}
    markers = "os^Dv<>pX*"
    with rc_context(style):
        figure = Figure(figsize=(9.5, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for marker, (name, points) in zip(markers, measured["curves"].items(), strict=False):
            cost = [point["evaluations_per_class"] for point in points]
            area = [point["auc"] for point in points]
            low, high = np.array([point["auc_ci95"] for point in points]).T
            line = left.plot(cost, area, marker=marker, markersize=4, label=name)[0]
            left.fill_between(cost, low, high, color=line.get_color(), alpha=0.08, linewidth=0)
            if not name.startswith(
                ("probability", "bound", "the paper")
            ):  # raw nats: their log-loss is off the scale
                loss = [point["log_loss"] for point in points]
                right.plot(cost, loss, marker=marker, markersize=4, color=line.get_color(), label=name)
        for axes, title in (
            (left, "AUC, with 95 % intervals"),
            (right, "log-loss of the calibrated posterior"),
        ):
            axes.set(xscale="log", xlabel="network evaluations per class", title=title)
            axes.grid(alpha=0.3)
        left.legend(fontsize=7.5, loc="lower left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
