"""Figures of the accuracy benchmarks, from their JSON files alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from scorebayes.benchmark.names import ENSEMBLE

# Okabe and Ito's colours, which colour-blind readers can tell apart, and a brown; a marker of its own, too, for every model.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#666666", "#000000", "#8c6d31")
_MARKERS = "osD^vPX<>p"


def draw_costs(result: Mapping[str, Any], path: Path) -> None:
    """AUC of every model against minutes of training and milliseconds per image, as SVG.

    ``result``: of ``run_benchmark``. Points are means over the seeds, bars the mean of their 95 % intervals; the ensemble of
    a model has its marker, hollow. Models without a cost are left out. The time of tuning is not in the minutes.
    """
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "scorebayes", "font.size": 9}
    models = {name: model for name, model in result["models"].items() if "cost" in model}
    families = list(dict.fromkeys(map(_family, models)))
    with rc_context(style):
        figure = Figure(figsize=(9.5, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for name, model in models.items():
            area, cost = model["test"]["auc"], model["cost"]
            low, high = area.get("ci95") or (area["mean"], area["mean"])
            nth = families.index(_family(name))
            look: Any = {
                "marker": _MARKERS[nth % len(_MARKERS)],
                "color": COLOURS[nth % len(COLOURS)],
                "markerfacecolor": "white" if name != _family(name) else None,
            }
            minutes = float(np.mean(cost["training_seconds"])) / 60
            for axes, x in ((left, minutes), (right, float(np.mean(cost["ms_per_image"])))):
                reach = [[area["mean"] - low], [high - area["mean"]]]
                axes.errorbar(
                    x, area["mean"], reach, ls="none", elinewidth=0.8, markersize=5, label=name, **look
                )
        left.set(xlabel="minutes of training", ylabel="AUC, with 95 % interval", title="Training")
        right.set(xlabel="milliseconds per image", title="Prediction")
        for axes in (left, right):
            axes.set(xscale="log")
            axes.margins(x=0.1)
            axes.grid(alpha=0.3)
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=7.5)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _family(name: str) -> str:
    """A model without its ensemble."""
    return name.removesuffix(ENSEMBLE.format(""))
