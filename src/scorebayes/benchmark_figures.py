"""Figures of the accuracy benchmarks, from their JSON files alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

_OURS = "scorebayes"  # what the names of our own models begin with


def draw_costs(result: Mapping[str, Any], path: Path) -> None:
    """AUC of every model against minutes of training and milliseconds per image, as SVG.

    ``result``: of ``run_benchmark``. Points are means over the seeds, bars the mean of their 95 % intervals; models
    without a cost are left out. The time of tuning is not in the minutes.
    """
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "scorebayes", "font.size": 9}
    models = {name: model for name, model in result["models"].items() if "cost" in model}
    with rc_context(style):
        figure = Figure(figsize=(9.5, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for name, model in models.items():
            area, cost = model["test"]["auc"], model["cost"]
            low, high = area.get("ci95") or (area["mean"], area["mean"])
            reach = [[area["mean"] - low], [high - area["mean"]]]
            colour = "#0072b2" if name.startswith(_OURS) else "#d55e00"
            minutes = float(np.mean(cost["training_seconds"])) / 60
            for axes, x in ((left, minutes), (right, float(np.mean(cost["ms_per_image"])))):
                axes.errorbar(
                    x, area["mean"], yerr=reach, fmt="o", color=colour, elinewidth=0.8, markersize=5
                )
                axes.annotate(name, (x, area["mean"]), (5, 3), textcoords="offset points", fontsize=7.5)
        left.set(xlabel="minutes of training", ylabel="AUC, with 95 % interval", title="Training")
        right.set(xlabel="milliseconds per image", title="Prediction")
        for axes in (left, right):
            axes.set(xscale="log")
            axes.margins(x=0.25)
            axes.grid(alpha=0.3)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
