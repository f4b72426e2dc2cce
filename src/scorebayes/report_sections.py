"""The sections of an evaluation report: from the files of a run to words, tables, figures and numbers."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from scorebayes import figures, metrics
from scorebayes.figures import Row, short
from scorebayes.heat import heat_map
from scorebayes.report_files import Cases, Run

SMALLEST_SUBGROUP = 10  # images of each class below which a subgroup is not shown
_SHOWN_EXCLUDED = 200
_RULES = {"youden": "Youden's index", "accuracy": "the number of hits"}


class Panel(NamedTuple):
    """A figure with the caption that says how to read it."""

    svg: str
    caption: str


class Table(NamedTuple):
    """Cells of text; the first column names the row."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A small image as a data address, with one or two lines below it."""

    data: str
    title: str
    detail: str = ""


class Gallery(NamedTuple):
    """A row of pictures under a heading."""

    title: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Section:
    """One section of the report. ``missing`` says what was not done, and ``command`` how to do it."""

    key: str
    title: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    panels: Sequence[Panel] = ()
    galleries: Sequence[Gallery] = ()
    flow: Sequence[tuple[str, str, str]] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""
    command: str = ""


def estimate(values: Mapping[str, Any], name: str, digits: int = 3) -> str:
    """``0.901 (0.850 to 0.952)``, or why there is no number."""
    value = values.get(name)
    if value is None:
        reason = values.get(f"{name}_reason")
        return f"not defined: {reason}" if reason else "not done"
    bounds = values.get(f"{name}_ci95")
    if not bounds:
        return f"{value:.{digits}f}"
    # Spaces that do not break: a narrow table cell breaks before the bounds, not within.
    return f"{value:.{digits}f} ({bounds[0]:.{digits}f}\u00a0to\u00a0{bounds[1]:.{digits}f})"


def interval(values: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    """The bounds of a metric's interval, or None twice."""
    low, high = values.get(f"{name}_ci95") or (None, None)
    return low, high


def share(part: int, whole: int) -> str:
    """``3 of 12 (25.0%)``."""
    return f"{part} of {whole} ({part / whole:.1%})" if whole else f"{part} of {whole}"


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested dictionaries as (dotted name, text) pairs."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list):
            shown = "; ".join(", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in value[:8])
            yield name, f"{len(value)} entries: {shown}; …" if len(value) > 8 else shown or "none"
        else:
            yield name, "yes" if value is True else "no" if value is False else str(value)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _png(image: NDArray) -> str:
    """Image [H, W], [H, W, 3] or [C, H, W], uint8 or float in [0, 1] -> data address of a PNG."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        pixels = (np.clip(np.nan_to_num(pixels), 0, 1) * 255 + 0.5).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def threshold_words(run: Run) -> str:
    """How a case is decided."""
    threshold, rule = run.metrics.get("threshold"), str(run.metrics.get("threshold_rule") or "")
    if threshold is None:
        return "naming the most probable class"
    rule = rule.removesuffix(" on the validation split")
    chosen = f", chosen on validation by {_RULES.get(rule, rule)}" if rule else ""
    return f"at the probability threshold {threshold:.3f}{chosen}"


def p_value(p: float) -> str:
    """A p-value as it is printed."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def seconds(duration: float) -> str:
    """A duration in seconds, in the unit that suits it."""
    if duration < 1:
        return f"{duration * 1000:.0f} ms"
    if duration < 120:
        return f"{duration:.1f} s"
    return f"{duration / 60:.0f} min" if duration < 7200 else f"{duration / 3600:.1f} h"


def model(run: Run) -> Section:
    config, m, calibration = run.config, run.metrics, run.calibration
    kinds = {name: _kind(config.get(name)) for name in ("noise", "net", "prior")}
    prior = [math.exp(v) for v in calibration.get("log_prior", [])]
    classes = ", ".join(f"{short(c)} {p:.3f}" for c, p in zip(run.classes, prior, strict=False))
    train = config.get("train", {})
    files = ("config.toml", "split.parquet", f"predictions-{run.split}.csv")
    hashes = {name: _hash(run.folder / name) for name in files if (run.folder / name).is_file()}
    if run.maker.get("weights"):
        hashes["weights"] = str(run.maker["weights"])[:16]
    rows = [
        ("Intended use", "research on medical image classification; not a medical device"),
        ("Classes", ", ".join(short(name) for name in run.classes) + f" (positive: {run.positive_name})"),
        ("Forward process", kinds["noise"]),
        ("Network", kinds["net"]),
        ("Estimator", _kind(m.get("estimator") or calibration.get("estimator") or config.get("likelihood"))),
        ("Class prior", classes or kinds["prior"]),
        ("Calibration", f"fitted on {calibration.get('fitted_on', 'val')}" if calibration else "not done"),
        ("Decision", threshold_words(run) if m else "not done"),
        (
            "Training",
            ", ".join(f"{k} {train[k]}" for k in ("steps", "batch", "lr") if k in train) or "not recorded",
        ),
        (
            "Network evaluations",
            f"{m['nfe_per_image']:.0f} an image, all classes" if "nfe_per_image" in m else "not done",
        ),
        ("Compute", _compute(run)),
        ("Seed", str(config.get("seed", train.get("seed", "not recorded")))),
        ("Hashes (SHA-256, first 16)", "; ".join(f"{name} {digest}" for name, digest in hashes.items())),
    ]
    tables = [
        Table("The model", ("", ""), rows),
        Table(
            "Software and hardware",
            ("", ""),
            list(_flat(run.environment)) or [("environment", "not recorded")],
        ),
        Table("Configuration as resolved", ("Key", "Value"), list(_flat(config))),
    ]
    return Section(
        "model", "The model", tables=tables, numbers={"config": config, "hashes": hashes, "prior": prior}
    )


def _compute(run: Run) -> str:
    """What training and deciding took, and on what."""
    parts = []
    if run.log["seconds"].notna().any():
        parts.append(f"training {seconds(float(run.log['seconds'].max()))}")
    if run.metrics.get("seconds_per_image") is not None:
        parts.append(f"{seconds(run.metrics['seconds_per_image'])} an image")
    where = [str(run.environment[key]) for key in ("processor", "accelerator") if run.environment.get(key)]
    return ", ".join(parts + where) or "not recorded"


def _kind(section: Any) -> str:
    """A component of the configuration in words."""
    if isinstance(section, str):
        return section
    if not isinstance(section, Mapping) or not section:
        return "not recorded"
    rest = ", ".join(f"{key} {value}" for key, value in section.items() if key != "kind")
    return f"{section.get('kind', '')} {f'({rest})' if rest else ''}".strip()


def _data(run: Run) -> Section:
    source, table = run.source, run.split_table
    title = "Data and reference standard"
    if not source and table is None:
        return Section("data", title, missing="no data set is recorded", command=run.command("train"))
    words = [
        "The reference standard is the label that the data set gives; how it was found is described in its "
        "publication."
    ]
    if run.synthetic:
        words.insert(0, "These images are synthetic: they were generated by a program and show no person.")
    standard = ", ".join(f"{k} {v}" for k, v in (run.config.get("data", {}).get("options") or {}).items())
    if standard:
        words.append(f"Options of the data set, among them how labels are read: {standard}.")
    rows = [
        (label, str(source[key]))
        for label, key in (
            ("Data set", "title"), ("Licence", "licence"), ("Citation", "citation"), ("Access", "access"),
            ("Bit depth", "bits"), ("Channels", "channels"),
        )
        if source.get(key)
    ]  # fmt: skip
    tables = [Table("The data set", ("", ""), rows)] if rows else []
    counts: dict[str, Any] = {}
    if table is not None:
        tables.append(_partition_table(run, table))
        absent = [name for name in DEMOGRAPHICS if name not in {str(c).lower() for c in table}]
        if absent:
            words.append(f"Not known from the data set: {', '.join(absent)}.")
        counts = {
            str(name): {"images": len(part), "labels": part["label"].value_counts().sort_index().to_dict()}
            for name, part in table.groupby("split")
        }
    return Section("data", title, words, tables, flow=_flow(run), numbers={"splits": counts})


DEMOGRAPHICS = ("age", "sex", "density", "view", "laterality", "vendor")


def _splits(table: pd.DataFrame) -> list[str]:
    present = set(table["split"].astype(str))
    return [name for name in ("train", "val", "test") if name in present] + sorted(
        present - {"train", "val", "test"}
    )


def _partition_table(run: Run, table: pd.DataFrame) -> Table:
    splits = _splits(table)
    parts = [table[table["split"].astype(str) == name] for name in splits]
    rows = [["Images", *(str(len(part)) for part in parts)]]
    if "patient_id" in table:
        known = [part["patient_id"].replace("", np.nan).dropna() for part in parts]
        rows.append(["Patients", *(str(k.nunique()) if len(k) else "not known" for k in known)])
    for index, name in enumerate(run.classes):
        rows.append([short(name), *(share(int((part["label"] == index).sum()), len(part)) for part in parts)])
    for column in _subgroup_columns(table):
        for value in sorted(_texts(table[column]).unique()):
            cells = [share(int((_texts(part[column]) == value).sum()), len(part)) for part in parts]
            rows.append([f"{short(column)}: {short(value) or 'not known'}", *cells])
    for column in ("age",):
        if column in table:
            rows.append([f"{column}: median (quartiles)", *(_quartiles(part[column]) for part in parts)])
    return Table("Images by partition", ("", *splits), rows)


def _quartiles(column: pd.Series) -> str:
    numbers = pd.to_numeric(column, errors="coerce").dropna()
    if numbers.empty:
        return "not known"
    low, middle, high = numbers.quantile([0.25, 0.5, 0.75])
    return f"{middle:.0f} ({low:.0f} to {high:.0f}), {len(numbers)} known"


def _subgroup_columns(table: pd.DataFrame) -> list[str]:
    """Columns that name few groups; not the identifiers, the label and the split."""
    fixed = {"image_id", "patient_id", "label", "split", "path", "path_hash"}
    return [c for c in table if c not in fixed and 1 < _texts(table[c]).nunique() <= 12]


def _texts(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.notna(), "").astype(str)


def _flow(run: Run) -> list[tuple[str, str, str]]:
    """The way of the images: (box, number, what left the way here)."""
    quarantined = 0 if run.quarantine is None else len(run.quarantine)
    table, predictions = run.split_table, run.predictions
    found = run.source.get("n_records", run.source.get("n"))
    if found is None and table is not None:
        found = len(table) + quarantined
    boxes = [
        (
            "Images in the data set",
            "not recorded" if found is None else str(found),
            f"{quarantined} quarantined",
        )
    ]
    if table is not None:
        counts = ", ".join(
            f"{name} {int((table['split'].astype(str) == name).sum())}" for name in _splits(table)
        )
        boxes.append(("Split by patient" if _patients_known(table) else "Split", str(len(table)), counts))
    if predictions is not None and run.cases is not None:
        failed = int((predictions["status"] != "ok").sum())
        unlabelled = len(predictions) - failed - len(run.cases)
        boxes.append(
            (
                f"Scored ({run.split})",
                str(len(predictions)),
                f"{failed} abstained, {unlabelled} without label",
            )
        )
        undecided = int((~run.cases.decided).sum())
        boxes.append(("Evaluated", str(len(run.cases)), f"{undecided} of them undecided"))
    return boxes


def _patients_known(table: pd.DataFrame) -> bool:
    return "patient_id" in table and bool((_texts(table["patient_id"]) != "").any())


def _exclusions(run: Run) -> Section:
    title = "Missing, quarantined and abstained images"
    if run.quarantine is None and run.predictions is None:
        return Section(
            "exclusions", title, missing="no image was read or scored yet", command=run.command("score")
        )
    rows = []
    if run.quarantine is not None:
        rows += [(q.image_id, "quarantined", q.reason) for q in run.quarantine.itertuples()]
    if run.predictions is not None:
        failed = run.predictions[run.predictions["status"] != "ok"]
        rows += [(f.image_id, "abstained", f.status) for f in failed.itertuples()]
    words = [f"{len(rows)} images were left out." if rows else "No image was left out."]
    unlabelled = 0 if run.split_table is None else int((run.split_table["label"] < 0).sum())
    if unlabelled:
        words.append(f"{unlabelled} images have no label: they are neither trained on nor evaluated.")
    if len(rows) > _SHOWN_EXCLUDED:
        words.append(
            f"The first {_SHOWN_EXCLUDED} are listed; all are in quarantine.csv and the predictions."
        )
    reasons = pd.Series([f"{what}: {short(why, 60)}" for _, what, why in rows], dtype=object).value_counts()
    tables = []
    if rows:
        counts = [(reason, str(n)) for reason, n in reasons.head(20).items()]
        tables = [
            Table("Reasons", ("Reason", "Images"), counts),
            Table("Images left out", ("Image", "What", "Why"), rows[:_SHOWN_EXCLUDED]),
        ]
    numbers = {"left_out": len(rows), "unlabelled": unlabelled, "reasons": reasons.to_dict()}
    return Section("exclusions", title, words, tables, numbers=numbers)


def leak_words(run: Run) -> str:
    """What connects the partitions, in words; empty where nothing does."""
    found = (
        (len(run.audit.get("patients_in_two_splits", ())), "patient(s)"),
        (len(run.audit.get("same_pixels_across_splits", ())), "group(s) of equal pictures"),
    )
    parts = [f"{number} {what}" for number, what in found if number]
    return f"In more than one partition: {', '.join(parts)}." if parts else ""


def _leakage(run: Run) -> Section:
    title = "Leakage and duplicate audit"
    if not run.audit:
        return Section("leakage", title, missing="no audit of the split", command=run.command("train"))
    words = [
        "No patient and no picture may be in two partitions: a model could know the answer by heart.",
        leak_words(run) or "None is.",
    ]
    table = Table("What was looked for and found", ("Check", "Result"), list(_flat(run.audit)))
    return Section("leakage", title, words, [table], numbers={"audit": run.audit})


def _not_evaluated(run: Run, key: str, title: str) -> Section:
    missing, command = "the images were not evaluated", run.command("evaluate", f"--split {run.split}")
    return Section(key, title, missing=missing, command=command)


def _precision(run: Run) -> Section:
    title, m = "Sample size and precision", run.metrics
    if not m:
        return _not_evaluated(run, "precision", title)
    n = int(m.get("n", 0))
    positives = round((m.get("prevalence") or 0) * n)
    patients = f" of {m['n_patients']} patients" if m.get("n_patients") else ""
    words = [
        f"{positives} {run.positive_name} images and {n - positives} others{patients} were evaluated. Half-widths of "
        "95 % intervals are below. They shrink with the square root of the number of cases, which gives the last column."
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


_AIM = 0.05  # half-width that a study is commonly planned for
_PRECISE = (
    ("auc", "AUC"), ("balanced_accuracy", "balanced accuracy"), ("sensitivity", "sensitivity at the threshold"),
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


def _by_level(m: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(what a case is, metrics), where they were computed."""
    pooled = ((name, m.get(f"{name}_level")) for name in ("breast", "patient"))
    return [("image", m), *((name, values) for name, values in pooled if isinstance(values, Mapping))]


def _pooling_words(values: Mapping[str, Any]) -> str:
    return (
        "Images of a breast (of a patient, where sides are not known) are pooled by adding their evidence, divided by "
        f"1 + (n - 1) r for n images, with the correlation r = {values['correlation']:.2f} "
        "(0: independent; 1: the mean), fitted on validation where there are enough. A patient is positive if a breast is."
    )


def _discrimination(run: Run) -> Section:
    title, m, cases = "Discrimination", run.metrics, run.cases
    if not m:
        return _not_evaluated(run, "discrimination", title)
    levels = _by_level(m)
    rows = [[label, *(estimate(values, name) for _, values in levels)] for name, label in METRICS]
    rows.append(["cases", *(str(values.get("n", "")) for _, values in levels)])
    words = []
    absent = [name for name in ("breast", "patient") if name not in dict(levels)]
    if absent:
        words.append(
            f"Not done: metrics by {' and by '.join(absent)} (not known, or one image each, so that by image says it)."
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
                "The nearer the curve to the upper left corner, the better. The band shows where curves of "
                "other patients like these would lie (95 %, point by point). The dot is the threshold used.",
            ),
            Panel(
                figures.precision_recall(curve, band, pr_point, float(cases.truth.mean())),
                f"Of the images called {run.positive_name}, how many are (precision), while more and more of "
                "them are found (recall). The dashed line is guessing.",
            ),
        ]
        numbers = {
            "roc": curve,
            "band": band,
            "operating_point": {"roc": roc_point, "precision_recall": pr_point},
        }
    return Section("discrimination", title, words, [table], panels, numbers=numbers)


PREVALENCES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # from screening to the clinic


def _threshold(run: Run) -> Section:
    title, m, cases = "Decisions at the threshold", run.metrics, run.cases
    if not m or cases is None:
        return _not_evaluated(run, "threshold", title)
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
    names |= {"accuracy": "accuracy", "majority_accuracy": "accuracy of the majority rule"}
    levels = [("image", run.at_threshold)]
    levels += [(name, v["at_threshold"]) for name, v in _by_level(m)[1:] if "at_threshold" in v]
    rates = [[label, *(estimate(values, name) for _, values in levels)] for name, label in names.items()]
    elsewhere = metrics.predictive_values(run.at_threshold, PREVALENCES)
    fixed = "fixed before these images were looked at"
    if run.split == "val":
        fixed = "on these very images, so that the rates flatter it"
    words = [
        f"Decided by {threshold_words(run).removeprefix('at ')}, {fixed}. "
        f"Predictive values hold for the prevalence here, {m.get('prevalence') or 0:.1%}."
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
        caption = f"If {run.positive_name} were rarer or more common, at the same cut on the evidence"
        tables.append(
            Table(caption, ("Prevalence", "positive predictive value", "negative predictive value"), cells)
        )
        words.append(
            "The last table is Bayes' rule from sensitivity and specificity: it holds where only the prevalence differs. "
            f"The same prior goes into single answers by '{run.command('predict', 'FILES --prior 0.01')}'."
        )
    numbers = {"confusion": counts, "threshold": m.get("threshold"), "by_prevalence": elsewhere}
    return Section("threshold", title, words, tables, numbers=numbers)


def _comparison(run: Run) -> Section:
    title, m = "Comparison with other models", run.metrics
    if not m:
        return _not_evaluated(run, "comparison", title)
    baselines: Mapping[str, Any] = m.get("baselines") or {}
    if not baselines:
        command = run.command("evaluate", f"--split {run.split}")
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
    tables = [Table("All models on the same images", ("Model", *labels.values()), [*rows, majority])]
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


def _calibration(run: Run) -> Section:
    title, m, cases = "Calibration", run.metrics, run.cases
    if not m or cases is None or not cases.both_classes:
        return _not_evaluated(run, "calibration", title)
    names = {
        "calibration_slope": "slope (1 is ideal; below 1: too extreme)",
        "calibration_intercept": "intercept (0 is ideal; above 0: too low)",
        "ece": "expected calibration error",
        "ece_by_chance": "the same, were the probabilities right: chance alone", "brier": "Brier score",
        "log_loss": "log loss [nats]",
        "saturated": f"share of images with a probability beyond {metrics.SATURATED}",
        "saturated_accuracy": "how many of these are named rightly",
    }  # fmt: skip
    columns = {"raw": m.get("raw") or {}, "calibrated": m}
    rows = [
        [label, *(estimate(values, name) for values in columns.values())] for name, label in names.items()
    ]
    sure = cases.prob.max(1) > metrics.SATURATED
    right = int((sure & (cases.prob.argmax(1) == cases.labels)).sum())
    words = [
        f"{share(int(sure.sum()), len(cases))} images have a probability beyond {metrics.SATURATED}"
        + (f"; {right} of these are named rightly." if sure.any() else ".")
    ]
    if not columns["raw"]:
        words.append(
            f"Not done: the metrics of the raw probabilities; '{run.command('evaluate', f'--split {run.split}')}' "
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
        "raw": "Before calibration: all noise levels counted alike, no class bias added.",
        "calibrated": "After calibration, which was fitted on other (validation) images.",
    }
    panels = [
        Panel(
            figures.reliability(curve, scores[name], f"reliability-{name}", f"Reliability, {name}"),
            f"{what[name]} A dot on the dashed line means: of the images given 30 %, 30 % are "
            f"{run.positive_name}. Bars are 95 % intervals; the grey bars below count images.",
        )
        for name, curve in curves.items()
    ]
    table = Table("Calibration with 95 % intervals", ("", *columns), rows)
    numbers = {"saturated": int(sure.sum()), "saturated_right": right, **curves}
    return Section("calibration", title, words, [table], panels, numbers=numbers)


def _usefulness(run: Run) -> Section:
    title, cases = "Usefulness: decision curve", run.cases
    if cases is None or not cases.both_classes:
        return _not_evaluated(run, "usefulness", title)
    curve = metrics.decision_curve(cases.truth, cases.score)
    panel = Panel(
        figures.decision(curve, run.metrics.get("threshold")),
        "Net benefit of acting when the probability exceeds a threshold: true alarms per image, false ones "
        "subtracted at the rate that the threshold implies. The model is useful where its line is highest.",
    )
    return Section("usefulness", title, panels=[panel], numbers={"decision_curve": curve})


def _posteriors(run: Run) -> Section:
    title, cases = "Posterior and log-odds", run.cases
    if cases is None or not len(cases):
        return _not_evaluated(run, "posteriors", title)
    names = (run.negative_name, run.positive_name)
    panels = [
        Panel(
            figures.posteriors(cases.score, cases.truth, names, run.metrics.get("threshold")),
            f"How often each probability was given, upwards for {names[1]}, downwards for {names[0]} images.",
        )
    ]
    numbers: dict[str, Any] = {"prob": cases.score, "truth": cases.truth.astype(int)}
    if cases.log_odds is not None and np.isfinite(cases.log_odds).any():
        finite = np.isfinite(cases.log_odds)
        value, error = cases.log_odds[finite], cases.std_error[finite]
        panels.append(
            Panel(
                figures.log_odds(value, error, cases.truth[finite], names),
                "Every image from the lowest to the highest log-odds. The line through a dot is two standard "
                "errors of the computation itself: more evaluations shorten it, more patients do not.",
            )
        )
        of = {names[outcome]: value[cases.truth[finite] == outcome] for outcome in (False, True)}
        middle = float(np.nanmedian(error)) if np.isfinite(error).any() else None
        caption = (
            "The same log-odds as histograms. The bar at the top is two standard errors of a typical image."
        )
        panels.append(
            Panel(
                figures.histograms(of, middle, "log-odds-histogram", f"log-odds of {names[1]}", "Log-odds"),
                caption,
            )
        )
        numbers |= {"median_std_error": middle, "log_odds": value, "std_error": error}
    words = [] if len(panels) > 1 else ["Not done: log-odds are not recorded in the predictions."]
    if run.loglik is None:
        words.append("Not done: the log-likelihood table of this split is absent.")
    else:
        own, other, label, truth, own_error = _class_values(run, run.loglik)
        if len(own):
            order = [y for y in range(len(run.classes)) if y != run.positive]
            order.insert(1, run.positive)  # which gives it the colour that it has everywhere
            of = {short(run.classes[y]): own[truth == y] for y in order}
            caption = (
                "What the estimator gives each image under its own class, by class. The bar at the top is two standard "
                "errors of a typical image."
            )
            title_of = "Under the true class"
            panels.append(
                Panel(figures.histograms(of, own_error, "class-likelihood", label, title_of), caption)
            )
            numbers |= {"own_class": own, "best_other_class": other, "own_class_std_error": own_error}
            caption = (
                "Right of 0 the true class explains the image better than any other, before prior and bias."
            )
            panels.append(Panel(figures.class_values(own, other, label), caption))
            numbers["true_class_fits_best"] = float(np.mean(own > other))
    return Section("posteriors", title, words, panels=panels, numbers=numbers)


class _LevelMeans(NamedTuple):
    """Labels [N], log-SNR [L], mean of each image, level and class [N, L, Y] and its variance (NaN for one draw); what the
    wavelets say [N, Y], zero where they were not asked."""

    labels: NDArray[np.int64]
    log_snr: NDArray[np.float64]
    values: NDArray[np.float64]
    variance: NDArray[np.float64]
    wavelets: NDArray[np.float64]


def _level_means(table: pd.DataFrame) -> _LevelMeans:
    """Of the scored images with a label and finite values."""
    table = table[(table["status"] == "ok") & (table["label"] >= 0)]
    grouped = table.groupby(["image_id", "level", "class"], sort=True)["value"]
    n_levels, n_classes = table["level"].nunique(), table["class"].nunique()

    def array(column: pd.Series) -> NDArray[np.float64]:
        wide = column.unstack(["level", "class"]).sort_index(axis=1)
        return wide.to_numpy(np.float64).reshape(len(wide), n_levels, n_classes)

    values, variance = array(grouped.mean()), array(grouped.var() / grouped.size())
    labels = table.groupby("image_id", sort=True)["label"].first().to_numpy(np.int64)
    usable = np.isfinite(values).all((1, 2))
    log_snr = table.groupby("level", sort=True)["log_snr"].mean().to_numpy(np.float64)
    wavelets = np.zeros((len(labels), n_classes))
    if "wavelets" in table:
        per_class = table.groupby(["image_id", "class"], sort=True)["wavelets"].first()
        wavelets = per_class.unstack("class").to_numpy(np.float64)
    return _LevelMeans(labels[usable], log_snr, values[usable], variance[usable], wavelets[usable])


def _class_values(
    run: Run, table: pd.DataFrame
) -> tuple[NDArray, NDArray, str, NDArray[np.int64], float | None]:
    """Value of the true class and of the best other one [N], what the value is called, labels [N], a typical error."""
    labels, _, values, variance, _ = _level_means(table)
    kind = str(table["kind"].iloc[0]) if "kind" in table else "class-score"
    weights = np.asarray(run.calibration.get("weights", []), dtype=np.float64)
    label = {"density": "log-likelihood [nats]", "lower-bound": "bound [nats]"}.get(kind, kind)
    if kind == "class-score" and len(weights) == values.shape[1]:
        label = "weighted class score"
    else:
        weights = np.full(values.shape[1], 1 / values.shape[1])
    total = np.einsum("nly,l->ny", values, weights)
    rows = np.arange(len(labels))
    own = total[rows, labels]
    error = np.sqrt(np.einsum("nly,l->ny", variance, weights**2))[rows, labels]
    rest = np.where(np.arange(total.shape[1]) == labels[:, None], -np.inf, total)
    typical = float(np.nanmedian(error)) if np.isfinite(error).any() else None
    return own, rest.max(1, initial=-np.inf), label, labels, typical


def _levels(run: Run) -> Section:
    title, table = "Which noise level decides", run.loglik
    if table is None:
        command = run.command("score", f"--split {run.split}")
        return Section(
            "levels", title, missing="the log-likelihood table of this split is absent", command=command
        )
    labels, log_snr, values, _, wavelets = _level_means(table)
    truth = labels == run.positive
    if values.shape[1] < 2:
        return Section(
            "levels", title, ["This estimator does not separate noise levels."], numbers={"levels": 1}
        )
    if not truth.any() or truth.all():
        return Section("levels", title, ["Only one class is present among the scored images."])
    others = np.delete(values, run.positive, axis=2).mean(2)
    difference = values[:, :, run.positive] - others
    auc = np.array([metrics.delong(truth, column)[0] for column in difference.T])
    intervals = [metrics.auc_interval(truth, column) or [np.nan, np.nan] for column in difference.T]
    low, high = np.array(intervals).T
    panels = [
        Panel(
            figures.level_auc(log_snr, auc, low, high),
            "How well the images are told apart by one noise level alone. Left: coarse structure, much "
            "noise; right: fine detail. The band takes images as independent (DeLong).",
        )
    ]
    weights = np.asarray(run.calibration.get("weights", []), dtype=np.float64)
    words = []
    if len(weights) == len(log_snr):
        panels.append(
            Panel(
                figures.level_weights(log_snr, weights),
                "How much each level counts in the decision, as fitted on validation images.",
            )
        )
    else:
        words.append("Not done: no weights were fitted for these noise levels.")
    numbers = {"log_snr": log_snr, "auc": auc, "auc_low": low, "auc_high": high, "weights": weights}
    weight = float(run.calibration.get("wavelet_weight", 0.0))
    if weight and wavelets.any():
        by_wavelets = wavelets[:, run.positive] - np.delete(wavelets, run.positive, axis=1).mean(1)
        alone = metrics.delong(truth, by_wavelets)[0]
        spread = {"wavelets": weight * by_wavelets.std(), "pixels": (difference @ weights).std()}
        numbers |= {"wavelets_auc": alone, "spread": spread}
        words.append(
            f"Beside the noise levels of the pixels, the wavelet coefficients decide: alone with an AUC of {alone:.3f}. "
            f"What they add to the log-odds has a standard deviation of {spread['wavelets']:.2f} over the images, what the "
            f"pixels add one of {spread['pixels']:.2f}."
        )
    return Section("levels", title, words, panels=panels, numbers=numbers)


def _subgroups(run: Run) -> Section:
    title, cases, table = "Subgroups", run.cases, run.split_table
    if cases is None or not cases.both_classes:
        return _not_evaluated(run, "subgroups", title)
    if table is None or not _subgroup_columns(table):
        words = ["The data set gives no view, side or other grouping."]
        return Section("subgroups", title, words, missing="no grouping is known", numbers={"groups": []})
    extra = table.drop_duplicates("image_id").set_index("image_id").reindex(cases.image_id)
    rows = [Row("all images", run.metrics.get("auc"), *interval(run.metrics, "auc"), strong=True)]
    if run.metrics.get("auc") is None or len(run.classes) > 2:
        rows = [_subgroup("all images", cases, np.ones(len(cases), bool), strong=True)]
    for column in _subgroup_columns(table):
        values = _texts(extra[column]).to_numpy()
        for value in sorted(set(values)):
            rows.append(_subgroup(f"{short(column)}: {short(value) or 'not known'}", cases, values == value))
    caption = (
        f"AUC of {run.positive_name} against the rest in each group, with 95 % interval. Groups with fewer "
        f"than {SMALLEST_SUBGROUP} images of either kind are not shown: their AUC would be chance. Of many "
        "groups one in twenty differs by chance."
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


def _abstention(run: Run) -> Section:
    title, cases = "Abstention: coverage and risk", run.cases
    if cases is None or not len(cases):
        return _not_evaluated(run, "abstention", title)
    curve = metrics.risk_coverage(cases.labels, cases.prob)
    point = None
    decided = cases.decided
    if decided.any():
        wrong = cases.prob.argmax(1) != cases.labels
        point = (float(decided.mean()), float(wrong[decided].mean()))
    panel = Panel(
        figures.coverage(curve, point),
        "If the model may stay silent where it is least sure, how many of its answers are wrong? From the "
        "most confident image on the left to all on the right, deciding by the most probable class.",
    )
    undecided = int((~decided).sum())
    words = [
        f"{share(undecided, len(cases))} answers lie within two standard errors of the computation from the "
        "threshold and are reported as undecided."
    ]
    numbers = {"coverage": curve, "undecided": undecided, "decided_point": point, "foreign": run.ood}
    if not run.ood:
        words.append(f"Not done: images of another kind ('{run.command('benchmark ood')}').")
        return Section("abstention", title, words, panels=[panel], numbers=numbers)
    more, table = _foreign(run.ood)
    return Section("abstention", title, words + more, [table], [panel], numbers=numbers)


def _foreign(found: Mapping[str, Any]) -> tuple[list[str], Table]:
    """What was declined of images of another kind, in words and by kind."""
    own = found["in_distribution"]
    words = [
        "Typicality asks whether an image is as easy for the network as those it was validated on, and looks like those it "
        f"was trained on. It declines {own['flagged']:.1%} of the {own['n']} test images and, of images of another kind, "
        "the shares below. Beside it a plain rule, which declines what has a low likelihood and aims at the same share of "
        "false alarms. An AUC below 0.5 means that the foreign images are more likely than the test images."
    ]
    if not found["judged_by_prediction"]:
        words.append(
            "The run was calibrated without looking at the appearance of images: its own predictions decline by the "
            "noise levels alone (third column)."
        )
    rows = [
        (
            short(name),
            f"{row['flagged']:.0%} of {row['n']}",
            f"{row['flagged_by_levels']:.0%}" if "flagged_by_levels" in row else "refused",
            f"{row['auc']:.3f}" if "auc" in row else "refused",
            f"{row['flagged_by_likelihood']:.0%}",
            f"{row['auc_by_likelihood']:.3f}" if "auc_by_likelihood" in row else "refused",
        )
        for name, row in found["kinds"].items()
    ]
    header = ("Kind", "Declined", "by noise levels alone", "AUC", "by likelihood", "AUC of likelihood")
    return words, Table("Images of another kind", header, rows)


def _robustness(run: Run) -> Section:
    title, found, attacks = "Corrupted and attacked images", run.robustness, run.adversarial
    if not found and not attacks:
        command = run.command("benchmark robustness")
        return Section("robustness", title, missing="corrupted images were not tried", command=command)
    words, tables, panels = [], [], []
    if found:
        words.append(
            f"{found['images']} test images under {len({r['kind'] for r in found['conditions']}) - 1} corruptions, at "
            f"severities {', '.join(map(str, found['severities']))}. Nothing was fitted anew."
        )
        tables += [_corruption_means(found), _corruption_kinds(found)]
        model = next(iter(found["summary"]))
        kinds = list(dict.fromkeys(r["kind"] for r in found["conditions"][1:]))
        value = {(r["kind"], r["severity"]): r["models"][model]["auc"] for r in found["conditions"]}
        grid = np.array([[value[kind, severity] for severity in found["severities"]] for kind in kinds])
        svg = heat_map(
            grid, kinds, [str(s) for s in found["severities"]], "robustness-auc", "AUC", min(0.5, grid.min())
        )
        panels.append(Panel(svg, f"AUC of {model} for every corruption, from the mildest to the worst."))
    else:
        words.append(f"Not done: corruptions ('{run.command('benchmark robustness')}').")
    if attacks:
        words.append(
            "An attacker changes every pixel by at most the budget, with the gradient (PGD) or by trial (Square). No model "
            "here was trained to withstand it."
        )
        rows = [
            (
                short(row["model"]),
                "none" if row["attack"] == "none" else f"{row['attack']}, {row['budget']}/255",
                estimate(row, "accuracy", 2),
                f"{row['declined']:.0%}" if "declined" in row else "–",
            )
            for row in attacks["results"]
        ]
        header = ("Model", "Attack", "Accuracy", "Declined as atypical")
        tables.append(Table(f"{attacks['images']} attacked test images", header, rows))
    else:
        words.append(f"Not done: attacks ('{run.command('benchmark adversarial')}').")
    numbers = {"corruptions": found, "attacks": attacks}
    return Section("robustness", title, words, tables, panels, numbers=numbers)


def _corruption_means(found: Mapping[str, Any]) -> Table:
    """Each model's means over all corruptions."""
    clean = found["conditions"][0]["models"]
    rows = [
        (
            short(model),
            f"{clean[model]['auc']:.3f}",
            f"{values['mean_auc']:.3f}",
            f"{values['mean_accuracy']:.3f}",
            f"{values['mean_log_loss']:.3f}",
            "–" if values["mean_corruption_error"] is None else f"{values['mean_corruption_error']:.2f}",
        )
        for model, values in found["summary"].items()
    ]
    header = ("Model", "AUC, clean", "AUC", "Accuracy", "Log loss", "Error, relative")
    return Table("Means over all corruptions and severities", header, rows)


def _corruption_kinds(found: Mapping[str, Any]) -> Table:
    """The worst severity of every corruption: the model's AUC, its abstentions and its lead over each baseline."""
    worst = max(found["severities"])
    peers = found["baselines"]
    rows = []
    for row in found["conditions"]:
        if row["severity"] == worst:
            declined = "not judged" if row["declined"] is None else f"{row['declined']:.0%}"
            leads = [
                f"{estimate(row['against'][peer], 'auc_difference')}, p = "
                f"{p_value(row['against'][peer]['auc_difference_p_holm'])}"
                for peer in peers
            ]
            first = next(iter(row["models"].values()))
            rows.append((row["kind"], f"{first['auc']:.3f}", declined, *leads))
    header = ("Corruption", "AUC", "Declined", *(f"AUC minus that of {short(peer)}" for peer in peers))
    caption = f"At severity {worst}; p-values are adjusted for the number of comparisons (Holm)"
    return Table(caption, header, rows)


def _training(run: Run) -> Section:
    title, log = "Training", run.log
    losses = log.dropna(subset=["step", "loss"])
    if losses.empty:
        return Section("training", title, missing="no training log", command=run.command("train", "--resume"))
    caption = (
        "The thin line is every record, the thick one its running mean. It says nothing about the classes."
    )
    panels = [Panel(figures.training_loss(losses["step"].to_numpy(), losses["loss"].to_numpy()), caption)]
    checks = log.dropna(subset=["step", "val_log_loss"])
    words, chosen = [], None
    if len(checks):
        chosen = int(checks["step"].iloc[int(checks["val_log_loss"].to_numpy().argmin())])
        step, loss, auc = (checks[name].to_numpy() for name in ("step", "val_log_loss", "val_auc"))
        caption = "What the checkpoint is chosen by. Lower log-loss and higher AUC are better."
        panels.append(Panel(figures.validation(step, loss, auc, chosen), caption))
    else:
        words.append("Not done: no validation was recorded during training.")
    numbers = {
        "steps": int(losses["step"].max()),
        "seconds": losses["seconds"].max(),
        "lowest_val_log_loss_at": chosen,
        "loss": losses[["step", "loss"]].to_numpy(),
        "validation": checks[["step", "val_log_loss", "val_auc"]].to_numpy(),
    }
    return Section("training", title, words, panels=panels, numbers=numbers)


_CURVES = {
    "learning": "training images of each class",
    "imbalance": "images of the common class for one of the rare",
}


def _curves(run: Run) -> Section:
    """``curves.json``: for "learning" and "imbalance", of each model ``x``, ``auc``, ``low`` and ``high``, lists."""
    title = "Learning and imbalance curves"
    found = {name: run.curves[name] for name in _CURVES if run.curves.get(name)}
    absent = [name for name in _CURVES if name not in found]
    if not found:
        return Section("curves", title, missing="the model was not trained on fewer or more skewed images")
    panels = [
        Panel(
            figures.learning(models, name, _CURVES[name]),
            "AUC on test images over what the models were trained on; bands are 95 % intervals.",
        )
        for name, models in found.items()
    ]
    words = [f"Not done: the {name} curve." for name in absent]
    return Section("curves", title, words, panels=panels, numbers=found)


def _examples(run: Run) -> Section:
    title, stored, cases = "Best, worst and median images", run.arrays("thumbnails.npz"), run.cases
    if stored is None or cases is None:
        command = run.command("evaluate", f"--split {run.split}")
        return Section("examples", title, missing="no pictures of the cases were kept", command=command)
    row_of = {str(name): row for row, name in enumerate(cases.image_id)}
    shown = [
        (cases.prob[row_of[str(name)], cases.labels[row_of[str(name)]]], row_of[str(name)], image)
        for name, image in zip(stored["image_id"], stored["images"], strict=True)
        if str(name) in row_of
    ]
    shown.sort(key=lambda item: -item[0])
    third = math.ceil(len(shown) / 3)
    groups = {
        "Best": shown[:third],
        "Median": shown[third:-third],
        "Worst": shown[-third:] if shown[third:] else [],
    }
    evidence = _evidence(run, cases)
    galleries = []
    for name, group in groups.items():
        if not group:
            continue
        pictures = [
            Picture(
                _png(image),
                f"{short(run.classes[cases.labels[row]])} {prob:.0%}",
                short(cases.image_id[row], 26),
            )
            for prob, row, image in group
        ]
        galleries.append(Gallery(name, pictures))
        maps = [evidence[str(cases.image_id[row])] for _, row, _ in group if cases.image_id[row] in evidence]
        if maps:
            galleries.append(Gallery(f"{name}: evidence", [picture for picture, _ in maps]))
    words = ["Ordered by the probability of the true class. Below each: class, that probability, id."]
    if evidence:
        words.append(
            "Evidence: orange pixels speak for the class named below the map, blue ones against it. The sum of a map and of "
            "what no pixel says (bias, prior, the wavelets of an even grey image) is the log-odds, given with its "
            "Monte-Carlo standard error. Maps are smoothed for display."
        )
    else:
        command = run.command("explain", f"--split {run.split}")
        words.append(f"Not done: evidence maps (which pixels decided). To get them: {command}")
    numbers = {
        "images": [
            {"image_id": name, "prob_true": prob, **(evidence[str(name)][1] if str(name) in evidence else {})}
            for prob, name in ((prob, cases.image_id[row]) for prob, row, _ in shown)
        ]
    }
    return Section("examples", title, words, galleries=galleries, numbers=numbers)


def _evidence(run: Run, cases: Cases) -> dict[str, tuple[Picture, dict[str, Any]]]:
    """Picture and figures of the evidence by image; none of images whose posterior has changed since."""
    stored = run.arrays("evidence.npz")
    if stored is None:
        return {}
    row_of = {str(name): row for row, name in enumerate(cases.image_id)}
    found: dict[str, tuple[Picture, dict[str, Any]]] = {}
    for index, name in enumerate(map(str, stored["image_id"])):
        figures_of = {key: float(stored[key][index]) for key in ("log_odds", "log_odds_std_error", "offset")}
        target = int(stored["target"][index])
        if name not in row_of or target >= len(run.classes):
            continue
        if target == run.positive and cases.log_odds is not None:
            change = abs(cases.log_odds[row_of[name]] - figures_of["log_odds"])
            if change > 0.01 * (1 + abs(figures_of["log_odds"])):
                continue
        title = f"{short(run.classes[target])} {figures_of['log_odds']:+.1f} ± {figures_of['log_odds_std_error']:.1f}"
        picture = Picture(_png(stored["overlay"][index]), title, short(name, 26))
        found[name] = picture, {"target": run.classes[target], **figures_of}
    return found


def _samples(run: Run) -> Section:
    title, stored = "Generated images beside their nearest training images", run.arrays("samples.npz")
    if stored is None:
        return Section("samples", title, missing="no images were generated", command=run.command("sample"))
    galleries = []
    for label in np.unique(stored["labels"]):
        rows = np.flatnonzero(stored["labels"] == label)[:8]
        name = short(run.classes[label]) if 0 <= label < len(run.classes) else f"class {label}"
        pictures = [Picture(_png(stored["images"][row]), "generated") for row in rows]
        galleries.append(Gallery(f"{name}: generated", pictures))
        if "nearest" in stored:
            pictures = [
                Picture(
                    _png(stored["nearest"][row]), "nearest real", f"distance {stored['distance'][row]:.2f}"
                )
                for row in rows
            ]
            galleries.append(Gallery(f"{name}: nearest training image of each", pictures))
    words = [
        "What the model believes each class looks like. A generated image that equals its neighbour was "
        "learned by heart. Distances are root sums of squared grey-value differences."
    ]
    distance = stored.get("distance", np.zeros(0))
    numbers = {
        "n": len(stored["images"]),
        "smallest_distance": float(distance.min()) if len(distance) else None,
    }
    return Section("samples", title, words, galleries=galleries, numbers=numbers)


def _cost(run: Run) -> Section:
    title, m, log = "Cost", run.metrics, run.log
    rows = []
    if m.get("nfe_per_image") is not None:
        rows.append(("network evaluations per image", f"{m['nfe_per_image']:.1f}"))
    if m.get("seconds_per_image") is not None:
        rows.append(("time per image, all classes", seconds(m["seconds_per_image"])))
    if log["step"].notna().any():
        rows.append(("training steps", f"{log['step'].max():.0f}"))
    if log["seconds"].notna().any():
        rows.append(("training time", seconds(float(log["seconds"].max()))))
    if log["images_per_second"].notna().any():
        rows.append(("training images per second (median)", f"{log['images_per_second'].median():.0f}"))
    if not rows:
        return _not_evaluated(run, "cost", title)
    return Section("cost", title, tables=[Table("What it costs", ("", ""), rows)], numbers=dict(rows))


SECTIONS: tuple[Callable[[Run], Section], ...] = (
    _discrimination, _threshold, _comparison, _calibration, _usefulness, _posteriors, _levels, _subgroups,
    _abstention, _robustness,
    _examples, _samples, _data, _precision, _exclusions, _leakage, _training, _curves, _cost, model,
)  # fmt: skip
