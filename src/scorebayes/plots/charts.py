"""The figures of a report: arrays in, one inline SVG out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from scorebayes.plots.svg import (
    INK,
    MODEL,
    MUTED,
    NEGATIVE,
    POSITIVE,
    SEVERAL,
    Plot,
    drawn,
    short,
)

Curve = Mapping[str, NDArray[np.float64]]


class Row(NamedTuple):
    """One line of a forest plot: an estimate with its interval, or ``note`` where there is none."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""
    strong: bool = False


def _unit_square(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))


@drawn("forest", "Estimates of groups or models with their 95 % intervals")
def forest(plot: Plot, rows: Sequence[Row], name: str, label: str, reference: float | None = None) -> None:
    """Estimates with their intervals below one another; ``reference`` is drawn as a line."""
    plot.name = name
    plot.figure.set_size_inches(5.0, 0.62 + 0.44 * max(1, len(rows)))
    axes = plot.axes
    ends = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    ends += [] if reference is None else [reference]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = 0.03 * max(high - low, 0.1)
    text: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "size": 9.5}
    for position, row in enumerate(rows):
        colour = MODEL if row.strong else MUTED
        weight = "bold" if row.strong else "normal"
        # The words stand above the bar, so that the figure stays readable on a narrow screen.
        axes.text(0, position - 0.42, short(row.name), weight=weight, **text)
        if row.value is None:
            axes.text(1, position - 0.42, row.note, color=MUTED, ha="right", **text)
            continue
        number = f"{row.value:.3f}"
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [position] * 2, color=colour, linewidth=2.2, solid_capstyle="butt")
            number += f" ({row.low:.3f} to {row.high:.3f})"
        (point,) = axes.plot(row.value, position, "D" if row.strong else "o", color=colour, markersize=6.5)
        plot.tip(point, f"{short(row.name)}: {number} {row.note}".strip())
        axes.text(1, position - 0.42, number, weight=weight, ha="right", **text)
    if reference is not None:
        axes.axvline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(len(rows) - 0.65, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)


@drawn("roc", "ROC curve with 95 % band and operating point")
def roc(plot: Plot, curve: Curve, band: Curve | None, point: tuple[float, float] | None, auc: str) -> None:
    """ROC curve with band and operating point (1 - specificity, sensitivity)."""
    axes = plot.axes
    if band is not None:
        axes.fill_between(
            band["grid"], band["sensitivity_low"], band["sensitivity_high"],
            step="post", color=MODEL, alpha=0.15, linewidth=0, label="95 % band",
        )  # fmt: skip
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="chance")
    axes.plot(
        curve["false_positive_rate"],
        curve["sensitivity"],
        color=MODEL,
        drawstyle="steps-post",
        label=f"AUC {auc}",
    )
    if point is not None:
        (mark,) = axes.plot(*point, "o", color=POSITIVE, markersize=8, label="at the threshold")
        plot.tip(mark, f"sensitivity {point[1]:.3f}, specificity {1 - point[0]:.3f}")
    _unit_square(axes, "1 - specificity", "sensitivity")
    axes.set_title("ROC")
    axes.legend(loc="lower right")


@drawn("precision-recall", "Precision-recall curve with 95 % band and operating point")
def precision_recall(
    plot: Plot, curve: Curve, band: Curve | None, point: tuple[float, float] | None, prevalence: float
) -> None:
    """Precision over recall with band, operating point (recall, precision) and the prevalence as chance."""
    axes = plot.axes
    if band is not None:
        axes.fill_between(
            band["grid"], band["precision_low"], band["precision_high"],
            color=MODEL, alpha=0.15, linewidth=0, label="95 % band",
        )  # fmt: skip
    axes.axhline(
        prevalence, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=f"prevalence {prevalence:.2f}"
    )
    axes.plot(curve["sensitivity"], curve["precision"], color=MODEL, drawstyle="steps-pre", label="model")
    if point is not None:
        (mark,) = axes.plot(*point, "o", color=POSITIVE, markersize=8, label="at the threshold")
        plot.tip(mark, f"recall {point[0]:.3f}, precision {point[1]:.3f}")
    _unit_square(axes, "recall (sensitivity)", "precision (PPV)")
    axes.set_title("Precision and recall")
    axes.legend(loc="best")


@drawn("reliability", "Reliability diagram: observed frequency over predicted probability")
def reliability(plot: Plot, curve: Curve, prob: NDArray, name: str, title: str) -> None:
    """Observed frequency with Wilson's interval over mean probability; histogram of ``prob`` [N] below."""
    plot.name = name
    axes = plot.axes
    counts, edges = np.histogram(prob, bins=20, range=(0, 1))
    axes.bar(
        edges[:-1], 0.18 * counts / max(1, counts.max()), width=0.05, align="edge", color=MUTED, alpha=0.3,
        label="number of images",
    )  # fmt: skip
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    error = np.abs(np.stack([curve["observed"] - curve["low"], curve["high"] - curve["observed"]]))
    axes.errorbar(
        curve["predicted"], curve["observed"], yerr=error, color=MODEL, linewidth=1.2, capsize=0, zorder=3
    )
    for predicted, observed, n in zip(curve["predicted"], curve["observed"], curve["n"], strict=True):
        (mark,) = axes.plot(predicted, observed, "o", color=MODEL, markersize=6, zorder=4)
        plot.tip(mark, f"{n:.0f} images: mean probability {predicted:.2f}, observed frequency {observed:.2f}")
    _unit_square(axes, "mean predicted probability", "observed frequency")
    axes.set_title(title)
    axes.legend(loc="upper left")


@drawn("decision", "Decision curve: net benefit of the model, of acting on all images, and on none")
def decision(plot: Plot, curve: Curve, threshold: float | None) -> None:
    """Net benefit over threshold probability, beside acting on all and on none."""
    axes = plot.axes
    top = max(0.05, float(np.max(curve["model"])), float(curve["all"][0]))
    axes.plot(curve["threshold"], curve["all"], color=MUTED, linewidth=1.2, label="act on all")
    axes.plot(curve["threshold"], curve["none"], color=INK, linewidth=1.2, label="act on none")
    axes.plot(curve["threshold"], curve["model"], color=MODEL, label="act on the model")
    if threshold is not None and 0 < threshold < 1:
        axes.axvline(threshold, color=POSITIVE, linewidth=1, linestyle=(0, (4, 3)), label="threshold used")
    axes.set(
        xlim=(0, 1),
        ylim=(-0.25 * top, 1.08 * top),
        xlabel="threshold probability",
        ylabel="net benefit per image",
    )
    axes.set_title("Decision curve")
    axes.legend(loc="upper right")


@drawn("posterior", "Histograms of the posterior probability for each true class")
def posteriors(
    plot: Plot, prob: NDArray, truth: NDArray[np.bool_], names: tuple[str, str], threshold: float | None
) -> None:
    """Histograms of the positive probability [N], one for each outcome; names of (negative, positive)."""
    axes = plot.axes
    bins = np.linspace(0, 1, 26)
    tallest = 1
    for outcome, colour, sign in ((True, POSITIVE, 1), (False, NEGATIVE, -1)):
        counts, _ = np.histogram(prob[truth == outcome], bins)
        tallest = max(tallest, counts.max(initial=1))
        label = f"{short(names[int(outcome)])} ({int((truth == outcome).sum())})"
        axes.bar(bins[:-1], sign * counts, width=0.038, align="edge", color=colour, alpha=0.85, label=label)
    if threshold is not None:
        axes.axvline(threshold, ymax=0.88, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="threshold")
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_ylim(-1.35 * tallest, 1.35 * tallest)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):.0f}")
    axes.set(xlim=(0, 1), xlabel=f"probability of {short(names[1])}", ylabel="number of images")
    axes.set_title("Posterior by outcome")
    axes.legend(loc="upper center", ncols=3, columnspacing=1.2, handlelength=1.2)


@drawn("log-odds", "Log-odds of every image with Monte-Carlo error, by outcome")
def log_odds(
    plot: Plot, value: NDArray, std_error: NDArray, truth: NDArray[np.bool_], names: tuple[str, str]
) -> None:
    """Each image's log-odds [N] with 2 Monte-Carlo standard errors, in order, coloured by outcome."""
    axes = plot.axes
    order = np.argsort(value, kind="stable")
    position = np.arange(len(value))
    for outcome, colour, marker in ((False, NEGATIVE, "o"), (True, POSITIVE, "D")):
        mask = truth[order] == outcome
        error = 2 * np.nan_to_num(std_error[order][mask])
        label = f"{short(names[int(outcome)])}"
        axes.errorbar(
            value[order][mask], position[mask], xerr=error, fmt=marker, markersize=3.2, color=colour,
            elinewidth=0.9, label=label,
        )  # fmt: skip
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlabel=f"log-odds of {short(names[1])}", ylabel="images, sorted by log-odds")
    axes.set_title("Log-odds with 2 Monte-Carlo standard errors")
    axes.legend(loc="upper left")


@drawn("class-values", "Histogram of the difference between the true and the best other class")
def class_values(plot: Plot, own: NDArray, other: NDArray, label: str, name: str) -> None:
    """Histogram of what the estimator gives for the true class minus the best other class, [N] each."""
    plot.name = name
    axes = plot.axes
    difference = own - other
    low, high = np.quantile(difference, [0.005, 0.995])
    bins = np.linspace(min(low, 0), max(high, 0), 31).tolist()
    clipped = np.clip(difference, bins[0], bins[-1])
    axes.hist(clipped[clipped >= 0], bins, color=MODEL, alpha=0.85, label="true class fits better")
    axes.hist(clipped[clipped < 0], bins, color=POSITIVE, alpha=0.85, label="other class fits better")
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel=f"{label}: true class minus the best other", ylabel="number of images")
    axes.set_title("Fit of the true class compared with the best other")
    axes.legend(loc="upper right")


@drawn("histograms", "Histograms of a value by class")
def histograms(
    plot: Plot, values: Mapping[str, NDArray], std_error: float | None, name: str, label: str, title: str
) -> None:
    """Outlined histograms of a value, one for each class; ``std_error`` of a typical image is drawn as a bar."""
    plot.name = name
    axes = plot.axes
    everything = np.concatenate(list(values.values()))
    low, high = np.quantile(everything, [0.005, 0.995])
    bins = np.linspace(low, max(high, low + 1e-9), 31).tolist()
    for number, (group, of) in enumerate(values.items()):
        colour = SEVERAL[number % len(SEVERAL)]
        axes.hist(
            np.clip(of, bins[0], bins[-1]),
            bins,
            histtype="stepfilled",
            facecolor=colour,
            alpha=0.35,
            edgecolor="none",
        )
        axes.hist(
            np.clip(of, bins[0], bins[-1]), bins, histtype="step", color=colour, label=f"{short(group)} ({len(of)})",
            linestyle=("-", "--", ":")[number // len(SEVERAL) % 3],
        )  # fmt: skip
    top = axes.get_ylim()[1]
    if std_error is not None:
        middle = float(np.median(everything))
        (bar,) = axes.plot(
            [middle - 2 * std_error, middle + 2 * std_error], [1.06 * top] * 2, color=INK, linewidth=2.5,
            label="± 2 Monte-Carlo standard errors",
        )  # fmt: skip
        plot.tip(bar, f"median Monte-Carlo standard error {std_error:.3g}")
    axes.set_ylim(0, 1.5 * top)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel=label, ylabel="number of images")
    axes.set_title(title)
    axes.legend(loc="upper left")


@drawn("learning", "AUC of models over the amount or the balance of the training images")
def learning(plot: Plot, models: Mapping[str, Mapping[str, Sequence[float]]], name: str, label: str) -> None:
    """AUC with 95 % band of each model over ``x``."""
    plot.name = name
    axes = plot.axes
    for number, (model, curve) in enumerate(models.items()):
        colour = SEVERAL[number % len(SEVERAL)]
        axes.fill_between(curve["x"], curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0)
        axes.plot(curve["x"], curve["auc"], color=colour, label=short(model))
        for x, auc in zip(curve["x"], curve["auc"], strict=True):
            (mark,) = axes.plot(x, auc, "o", color=colour, markersize=5)
            plot.tip(mark, f"{short(model)}, {x:g}: AUC {auc:.3f}")
    axes.set_xscale("log")
    axes.set(xlabel=label, ylabel="AUC on test images")
    axes.set_title(f"{name.capitalize()} curve")
    axes.legend(loc="best")


@drawn("level-auc", "AUC of each noise level alone")
def level_auc(plot: Plot, log_snr: NDArray, auc: NDArray, low: NDArray, high: NDArray, name: str) -> None:
    """AUC of each noise level alone, [L] each."""
    plot.name = name
    axes = plot.axes
    axes.fill_between(log_snr, low, high, color=MODEL, alpha=0.15, linewidth=0, label="95 % interval")
    axes.plot(log_snr, auc, color=MODEL)
    for x, y in zip(log_snr, auc, strict=True):
        (mark,) = axes.plot(x, y, "o", color=MODEL, markersize=5)
        plot.tip(mark, f"log-SNR {x:.2f}: AUC {y:.3f}")
    axes.axhline(0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="chance")
    axes.set(xlabel="log signal-to-noise ratio (noisy to clean)", ylabel="AUC of this level alone")
    axes.set_title("Single noise levels")
    axes.legend(loc="best")


@drawn("level-weights", "Fitted weight of each noise level")
def level_weights(plot: Plot, log_snr: NDArray, weights: NDArray, name: str) -> None:
    """Fitted weight of each noise level, [L] each, as a share of their sum."""
    plot.name = name
    axes = plot.axes
    share = weights / max(float(weights.sum()), 1e-300)
    width = 0.7 * float(np.min(np.diff(np.sort(log_snr)))) if len(log_snr) > 1 else 1.0
    for x, value in zip(log_snr, share, strict=True):
        (bar,) = axes.bar(x, value, width=max(width, 0.05), color=MODEL, alpha=0.85)
        plot.tip(bar, f"log-SNR {x:.2f}: {value:.1%} of the weight")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set(xlabel="log signal-to-noise ratio (noisy to clean)", ylabel="share of the weight")
    axes.set_title("Weights fitted on validation")


@drawn("coverage", "Share of wrong answers against share of images answered")
def coverage(plot: Plot, curve: Curve, decided: tuple[float, float] | None) -> None:
    """Wrong answers over images answered; ``decided`` is (coverage, risk) of the decided images."""
    axes = plot.axes
    axes.plot(
        curve["coverage"], curve["risk"], color=MODEL, drawstyle="steps-post", label="most confident first"
    )
    if decided is not None:
        (mark,) = axes.plot(*decided, "o", color=POSITIVE, markersize=8, label="decided images only")
        plot.tip(mark, f"coverage {decided[0]:.1%}, wrong {decided[1]:.1%}")
    axes.set(
        xlim=(0, 1.01), ylim=(0, None), xlabel="share of images answered", ylabel="share of answers wrong"
    )
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("Coverage and risk")
    axes.legend(loc="upper left")


@drawn("training-loss", "Training loss over optimiser steps")
def training_loss(plot: Plot, step: NDArray, loss: NDArray) -> None:
    """Training loss over the steps, raw and as a running mean."""
    axes = plot.axes
    axes.plot(step, loss, color=MODEL, alpha=0.25, linewidth=0.8, label="each record")
    window = max(1, len(loss) // 25)
    if window > 1:
        mean = np.convolve(loss, np.ones(window) / window, mode="valid")
        axes.plot(step[window - 1 :], mean, color=MODEL, label=f"mean of {window}")
    axes.set(xlabel="optimiser step", ylabel="denoising loss")
    low, high = np.quantile(loss, [0.0, 0.98])
    axes.set_ylim(low - 0.05 * (high - low + 1e-9), high + 0.15 * (high - low + 1e-9))
    axes.set_title("Training loss")
    axes.legend(loc="upper right")


@drawn("validation", "Validation log-loss and AUC over optimiser steps")
def validation(plot: Plot, step: NDArray, log_loss: NDArray, auc: NDArray, chosen: int | None) -> None:
    """Class log-loss and AUC on the validation images during training, [V] each; NaN where not recorded."""
    axes = plot.axes
    axes.plot(step, log_loss, "o-", color=MODEL, markersize=4, label="class log-loss")
    axes.plot(step, auc, "D-", color=POSITIVE, markersize=4, label="AUC")
    if chosen is not None:
        axes.axvline(chosen, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="lowest log-loss")
    axes.set(xlabel="optimiser step", ylabel="on validation images")
    axes.set_ylim(0, max(1.02, float(np.nanmax(np.r_[log_loss, 0])) * 1.1))
    axes.set_title("Validation")
    axes.legend(loc="best")
