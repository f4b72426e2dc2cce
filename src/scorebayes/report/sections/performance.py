"""Performance: discrimination, decisions, calibration, usefulness, and how precisely they are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorebayes import metrics
from scorebayes.plots import charts as figures
from scorebayes.plots.charts import Row
from scorebayes.plots.svg import short
from scorebayes.report.files import Cases, Run
from scorebayes.report.parts import (
    Panel,
    Section,
    Table,
    estimate,
    grouping_columns,
    interval,
    not_evaluated,
    p_value,
    percent,
    share,
    texts,
    threshold_words,
)

SMALLEST_SUBGROUP = 10  # images of each class below which a subgroup is not shown
_AIM = 0.05  # half-width that a study is commonly planned for
_PRECISE = (
    ("auc", "AUC"), ("balanced_accuracy", "balanced accuracy (most probable class)"),
    ("sensitivity", "sensitivity at the threshold"),
    ("specificity", "specificity at the threshold"), ("brier", "Brier score"), ("ece", "calibration error"),
)  # fmt: skip
METRICS = (
    ("auc", "AUC (ROC)"),
    ("auprc", "AUPRC (precision-recall)"),
    ("prevalence", "prevalence (AUPRC of guessing)"),
    ("balanced_accuracy", "balanced accuracy (most probable class)"),
    ("accuracy", "accuracy (most probable class)"),
    ("majority_accuracy", "accuracy of the majority rule"),
    ("mcc", "Matthews correlation"),
    ("log_loss", "log loss [nats]"),
    ("brier", "Brier score"),
    ("sensitivity_at_90_specificity", "sensitivity at 90 % specificity"),
)
PREVALENCES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # from screening to the clinic


def precision(run: Run) -> Section:
    title, m = "Sample size and precision", run.metrics
    if not m:
        return not_evaluated(run, "precision", title)
    n = int(m.get("n", 0))
    positives = round((m.get("prevalence") or 0) * n)
    patients = f" of {m['n_patients']} patients" if m.get("n_patients") else ""
    words = [
        f"{positives} {run.positive_name} images and {n - positives} others{patients} were evaluated. The table gives "
        "half-widths of 95 % intervals. The last column assumes that they shrink with the square root of the sample size."
    ]
    rows, half = [], {}
    for name, label in _PRECISE:
        values = run.at_threshold if name in ("sensitivity", "specificity") else m
        low, high = interval(values, name)
        if low is not None and high is not None:
            half[name] = (high - low) / 2
            needed = n * (half[name] / _AIM) ** 2
            rows.append((label, f"±{half[name]:.3f}", "enough" if needed <= n else f"about {needed:.0f}"))
    header = ("Metric", "Known to", f"images needed for ±{_AIM}")
    tables = [Table("Precision", header, rows)] if rows else []
    return Section(
        "precision", title, words, tables, numbers={"half_width": half, "positives": positives, "n": n}
    )


def _by_level(m: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(what a case is, metrics), where they were computed."""
    pooled = ((name, m.get(f"{name}_level")) for name in ("breast", "patient"))
    return [("image", m), *((name, values) for name, values in pooled if isinstance(values, Mapping))]


def _pooling_words(values: Mapping[str, Any]) -> str:
    return (
        "Images of a breast (of a patient, if the sides are unknown) are pooled: their evidence is added and divided by "
        f"1 + (n - 1) r for n images. The correlation r = {values['correlation']:.2f} "
        "(0: independent; 1: the mean) is fitted on validation images if there are enough. A patient is positive if one "
        "breast is."
    )


def discrimination(run: Run) -> Section:
    title, m, cases = "Discrimination", run.metrics, run.cases
    if not m:
        return not_evaluated(run, "discrimination", title)
    levels = _by_level(m)
    rows = [[label, *(estimate(values, name) for _, values in levels)] for name, label in METRICS]
    rows.append(["cases", *(str(values.get("n", "")) for _, values in levels)])
    words = []
    absent = [name for name in ("breast", "patient") if name not in dict(levels)]
    if absent:
        words.append(
            f"Not done: metrics by {' and by '.join(absent)} (unknown, or one image each, so the values by image apply)."
        )
    words += [_pooling_words(values) for name, values in levels if "correlation" in values][:1]
    table = Table(
        f"Metrics with 95 % intervals ({m.get('interval_method', 'method not recorded')})",
        ("Metric", *(f"by {name}" for name, _ in levels)),
        rows,
    )
    panels: list[Panel] = []
    numbers: dict[str, Any] = {}
    if cases is not None and cases.both_classes:
        curve = metrics.roc_curve(cases.truth, cases.score)
        band = metrics.roc_band(cases.truth, cases.score, groups=list(cases.patient_id), n_bootstrap=400)
        at = run.at_threshold
        sensitivity, specificity, ppv = (at.get(name) for name in ("sensitivity", "specificity", "ppv"))
        roc_point = None if sensitivity is None or specificity is None else (1 - specificity, sensitivity)
        pr_point = None if sensitivity is None or ppv is None else (sensitivity, ppv)
        area = metrics.delong(cases.truth, cases.score)[0]
        panels = [
            Panel(
                figures.roc(curve, band, roc_point, f"{area:.3f}"),
                "The closer the curve is to the upper left corner, the better. The band shows where the curves of "
                "similar patients would lie (95 %, point by point). The dot is the threshold used.",
            ),
            Panel(
                figures.precision_recall(curve, band, pr_point, float(cases.truth.mean())),
                f"Precision: the share of images called {run.positive_name} that really are. Recall: the share of "
                f"{run.positive_name} images that are found. The dashed line is guessing.",
            ),
        ]
        numbers = {
            "roc": curve,
            "band": band,
            "operating_point": {"roc": roc_point, "precision_recall": pr_point},
        }
    return Section("discrimination", title, words, [table], panels, numbers=numbers)


def threshold(run: Run) -> Section:
    title, m, cases = "Decisions at the threshold", run.metrics, run.cases
    if not m or cases is None:
        return not_evaluated(run, "threshold", title)
    n_classes = len(run.classes)
    called = cases.called(m.get("threshold"))
    counts = np.zeros((n_classes, n_classes), dtype=int)
    np.add.at(counts, (cases.labels, called), 1)
    header = ("True class", *(f"called {short(name)}" for name in run.classes), "all")
    rows = [
        [short(name), *(str(v) for v in counts[index]), str(counts[index].sum())]
        for index, name in enumerate(run.classes)
    ]
    names = {
        "sensitivity": "sensitivity", "specificity": "specificity",
        "ppv": "positive predictive value", "npv": "negative predictive value",
    }  # fmt: skip
    named = "accuracy at this threshold" if n_classes == 2 else "accuracy (most probable class)"
    names |= {"accuracy": named, "majority_accuracy": "accuracy of the majority rule"}
    levels = [("image", run.at_threshold)]
    levels += [(name, v["at_threshold"]) for name, v in _by_level(m)[1:] if "at_threshold" in v]
    rates = [[label, *(estimate(values, name) for _, values in levels)] for name, label in names.items()]
    elsewhere = metrics.predictive_values(run.at_threshold, PREVALENCES)
    fixed = "this rule was fixed before these images were used"
    if run.split == "val":
        fixed = "this rule was chosen on these same images, so the rates are too optimistic"
    words = [
        f"Decided by {threshold_words(run).removeprefix('at ')}; {fixed}. "
        f"Predictive values hold for the prevalence of these images, {percent(m.get('prevalence') or 0)}."
    ]
    tables = [
        Table("Confusion table", header, rows),
        Table(
            f"Rates for {run.positive_name}, with 95 % intervals",
            ("", *(f"by {name}" for name, _ in levels)),
            rates,
        ),
    ]
    if elsewhere:
        cells = [
            [f"{row['prevalence']:.1%}", estimate(row, "ppv"), estimate(row, "npv")] for row in elsewhere
        ]
        caption = f"If {run.positive_name} were rarer or more common, with the same cut-off on the evidence"
        tables.append(
            Table(caption, ("Prevalence", "positive predictive value", "negative predictive value"), cells)
        )
        words.append(
            "The last table follows from sensitivity and specificity by Bayes' rule, if only the prevalence differs. "
            f"To use such a prior for single images: `{run.command('predict', 'FILES', '--prior', '0.01')}`."
        )
    numbers = {"confusion": counts, "threshold": m.get("threshold"), "by_prevalence": elsewhere}
    return Section("threshold", title, words, tables, numbers=numbers)


def comparison(run: Run) -> Section:
    title, m = "Comparison with other models", run.metrics
    if not m:
        return not_evaluated(run, "comparison", title)
    baselines: Mapping[str, Any] = m.get("baselines") or {}
    if not baselines:
        command = run.command("evaluate", "--split", run.split)
        return Section(
            "comparison", title, missing="no other model was trained on this split", command=command
        )
    labels = {
        "auc": "AUC", "auprc": "AUPRC", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy",
        "log_loss": "log loss", "ece": "calibration error",
    }  # fmt: skip
    models = {"ScoreBayes": m, **baselines}
    majority = [
        "always the most frequent class",
        "0.500",
        "–",
        "–",
        estimate(m, "majority_accuracy"),
        "–",
        "–",
    ]
    rows = [[short(name), *(estimate(values, key) for key in labels)] for name, values in models.items()]
    caption = "All models on the same images; accuracies are of the most probable class"
    tables = [Table(caption, ("Model", *labels.values()), [*rows, majority])]
    tested = {name: v for name, v in baselines.items() if v.get("auc_difference_p") is not None}
    adjusted = dict(zip(tested, metrics.holm([v["auc_difference_p"] for v in tested.values()]), strict=True))
    paired = [
        [short(name), estimate(v, "auc_difference"), p_value(v["auc_difference_p"]), p_value(adjusted[name]),
         str(v.get("auc_difference_method", "not recorded"))]
        for name, v in tested.items()
    ]  # fmt: skip
    words = []
    if paired:
        header = ("ScoreBayes minus", "AUC difference", "p", "p adjusted (Holm)", "method")
        tables.append(Table("Paired comparison, image by image", header, paired))
    if len(tested) < len(baselines):
        words.append(
            "Not done: the paired comparison with "
            + ", ".join(short(n) for n in baselines if n not in tested)
        )
    return Section("comparison", title, words, tables, numbers={"holm": adjusted, "baselines": baselines})


def calibration(run: Run) -> Section:
    title, m, cases = "Calibration", run.metrics, run.cases
    if not m or cases is None or not cases.both_classes:
        return not_evaluated(run, "calibration", title)
    names = {
        "calibration_slope": "slope (1 is ideal; below 1: too extreme)",
        "calibration_intercept": "intercept (0 is ideal; above 0: too low)",
        "ece": "expected calibration error",
        "ece_by_chance": "calibration error expected by chance", "brier": "Brier score",
        "log_loss": "log loss [nats]",
        "saturated": f"share of images with a probability beyond {metrics.SATURATED}",
        "saturated_accuracy": "share of these that are classified correctly",
    }  # fmt: skip
    columns = {"raw": m.get("raw") or {}, "calibrated": m}
    rows = [
        [label, *(estimate(values, name) for values in columns.values())] for name, label in names.items()
    ]
    sure = cases.prob.max(1) > metrics.SATURATED
    right = int((sure & (cases.prob.argmax(1) == cases.labels)).sum())
    words = [
        f"{share(int(sure.sum()), len(cases))} images have a probability beyond {metrics.SATURATED}"
        + (f"; {right} of these are classified correctly." if sure.any() else ".")
    ]
    words += _shift_words(run)
    if not columns["raw"]:
        words.append(
            f"Not done: the metrics of the raw probabilities; `{run.command('evaluate', '--split', run.split)}` "
            "computes them."
        )
    curves = {"calibrated": metrics.reliability_curve(cases.truth, cases.score)}
    scores = {"calibrated": cases.score}
    if cases.raw_prob is not None:
        raw = cases.raw_prob[:, cases.positive]
        finite = np.isfinite(raw)
        curves = {"raw": metrics.reliability_curve(cases.truth[finite], raw[finite]), **curves}
        scores["raw"] = raw[finite]
    else:
        words.append("Not done: the reliability of the raw, uncalibrated probabilities.")
    what = {
        "raw": "Before calibration: all noise levels have equal weight, and there is no class bias.",
        "calibrated": "After calibration, which was fitted on separate validation images.",
    }
    panels = [
        Panel(
            figures.reliability(curve, scores[name], f"reliability-{name}", f"Reliability, {name}"),
            f"{what[name]} On the dashed line, 30 % of the images given a probability of 30 % are "
            f"{run.positive_name}. Bars are 95 % intervals; the grey bars below count images.",
        )
        for name, curve in curves.items()
    ]
    table = Table("Calibration with 95 % intervals", ("", *columns), rows)
    numbers = {"saturated": int(sure.sum()), "saturated_right": right, **curves}
    return Section("calibration", title, words, [table], panels, numbers=numbers)


def _shift_words(run: Run) -> list[str]:
    """Whether these images look like the training images; empty if it was not measured."""
    shift = run.metrics.get("shift") or {}
    if not shift:
        return []
    areas = ", ".join(f"{short(name)} {estimate(values, 'auc')}" for name, values in shift.items())
    told = (
        "How different these images look from the training images, by class, as the AUC of simple image statistics: "
        f"{areas} (0.5: no difference)."
    )
    if any(values["noticed"] for values in shift.values()):
        remedy = run.command("recalibrate", "--data", "KIND:PATH", "--out", "NEW")
        told += (
            " Calibration and threshold were fitted on images like the training images and may not hold here. "
            f"`{remedy}` fits them on labelled images from this site."
        )
    return [told]


def usefulness(run: Run) -> Section:
    title, cases = "Usefulness: decision curve", run.cases
    if cases is None or not cases.both_classes:
        return not_evaluated(run, "usefulness", title)
    curve = metrics.decision_curve(cases.truth, cases.score)
    panel = Panel(
        figures.decision(curve, run.metrics.get("threshold")),
        "Net benefit of acting when the probability exceeds a threshold: true alarms per image minus false alarms, "
        "weighted as the threshold implies. The model is useful where its line is highest.",
    )
    return Section("usefulness", title, panels=[panel], numbers={"decision_curve": curve})


def subgroups(run: Run) -> Section:
    title, cases, table = "Subgroups", run.cases, run.split_table
    if cases is None or not cases.both_classes:
        return not_evaluated(run, "subgroups", title)
    if table is None or not grouping_columns(table):
        words = ["The data set has no view, side or other grouping."]
        return Section("subgroups", title, words, missing="no grouping is known", numbers={"groups": []})
    extra = table.drop_duplicates("image_id").set_index("image_id").reindex(cases.image_id)
    rows = [Row("all images", run.metrics.get("auc"), *interval(run.metrics, "auc"), strong=True)]
    if run.metrics.get("auc") is None or len(run.classes) > 2:
        rows = [_subgroup("all images", cases, np.ones(len(cases), bool), strong=True)]
    for column in grouping_columns(table):
        values = texts(extra[column]).to_numpy()
        for value in sorted(set(values)):
            rows.append(_subgroup(f"{short(column)}: {short(value) or 'not known'}", cases, values == value))
    caption = (
        f"AUC of {run.positive_name} against the rest in each group, with 95 % interval. Groups with fewer "
        f"than {SMALLEST_SUBGROUP} images of either class are not shown: their AUC would be mostly chance. Among "
        "many groups, one in twenty differs by chance."
    )
    panel = Panel(figures.forest(rows, "subgroups-forest", "AUC", rows[0].value), caption)
    return Section("subgroups", title, panels=[panel], numbers={"groups": [row._asdict() for row in rows]})


def _subgroup(name: str, cases: Cases, inside: NDArray[np.bool_], strong: bool = False) -> Row:
    truth, score = cases.truth[inside], cases.score[inside]
    smaller = int(min(truth.sum(), (~truth).sum()))
    label = f"{name} (n = {len(truth)})"
    if smaller < SMALLEST_SUBGROUP:
        return Row(label, None, note=f"fewer than {SMALLEST_SUBGROUP} of a class")
    values = metrics.classification_metrics(
        truth.astype(int), np.stack([1 - score, score], axis=1),
        groups=list(cases.patient_id[inside]), n_bootstrap=400,
    )  # fmt: skip
    auc = values["auc"]
    return Row(label, float(auc) if isinstance(auc, float) else None, *interval(values, "auc"), strong=strong)
