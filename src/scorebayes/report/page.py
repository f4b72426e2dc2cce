"""The evaluation report of a run: one HTML file that needs no network, its numbers as JSON, and a model card.

It reads the files of the run directory and nothing else, so it can be made again anywhere, without torch.
What a missing file would have shown is listed as "not done", with the command that makes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from scorebayes.plots import charts as figures
from scorebayes.plots.charts import Row
from scorebayes.plots.svg import short
from scorebayes.report.files import Run
from scorebayes.report.parts import (
    MOST_PROBABLE,
    Panel,
    estimate,
    interval,
    p_words,
    percent,
    seconds,
    share,
    threshold_words,
)
from scorebayes.report.places import without_places
from scorebayes.report.sections import SECTIONS
from scorebayes.report.sections.inputs import leak_words, model
from scorebayes.report.sections.performance import METRICS
from scorebayes.storage.atomic import write_atomically
from scorebayes.storage.json_text import plain

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("scorebayes.report"),
    autoescape=jinja2.select_autoescape(("html.j2",)),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(run_dir: Path) -> Path:
    """Write ``report.html``, ``report.json`` and ``model-card.md`` into a run directory; returns the first.

    Raises ConfigError if the folder is no run directory, DataError if one of its files is damaged.
    """
    run = Run(Path(run_dir))
    summary = _summary(run)
    sections = [build(run) for build in SECTIONS]
    not_done = [(s.title, s.missing, s.command) for s in sections if s.missing]
    page = _TEMPLATES.get_template("report.html.j2").render(
        run=run, summary=summary, sections=sections, not_done=not_done, version=version("scorebayes")
    )
    numbers = {
        "scorebayes": version("scorebayes"),
        "split": run.split,
        "synthetic": run.synthetic,
        "metrics": run.metrics,
        "summary": {"headline": summary.headline, "cards": dict(summary.cards), "tiles": summary.tiles},
        "sections": {
            s.key: {
                "done": not s.missing,
                "missing": s.missing,
                "command": s.command,
                "words": s.words,
                "tables": [table._asdict() for table in s.tables],
                **s.numbers,
            }
            for s in sections
        },
    }
    card = _TEMPLATES.get_template("model-card.md.j2").render(**_card(run, summary, not_done))
    content = json.dumps(plain(numbers), indent=1, allow_nan=False) + "\n"
    for name, text in (("report.json", content), ("model-card.md", card), ("report.html", page)):
        write_atomically(run.folder / name, without_places(text, run.config.get("data", {})))
    return run.folder / "report.html"


# --------------------------------------------------------------------------------------------------
# The first screen


class Summary(NamedTuple):
    """The first screen."""

    headline: str
    cards: Sequence[tuple[str, str]]
    tiles: Sequence[tuple[str, str, str]]
    panel: Panel | None


def _summary(run: Run) -> Summary:
    m = run.metrics
    if not m:
        headline = "This model has not been evaluated yet."
        todo = (
            f"Run `{run.command('score', '--split', 'test')}`, then "
            f"`{run.command('evaluate', '--split', 'test')}`."
        )
        return Summary(headline, [("What to do", todo)], [], None)
    return Summary(_headline(run), _cards(run), _tiles(run), _headline_figure(run))


def _headline(run: Run) -> str:
    m = run.metrics
    if m.get("auc") is None:
        reason = m.get("auc_reason", "not computed")
        return f"There is no AUC for these {m.get('n', 0)} images: {reason}."
    images = {"test": "held-out test images", "val": "validation images"}.get(
        run.split, f"{run.split} images"
    )
    if len(run.classes) > 2:
        return (
            f"The model separates {len(run.classes)} classes of {images} with a mean AUC of {m['auc']:.3f}."
        )
    return (
        f"Of two {images}, one “{run.positive_name}” and one “{run.negative_name}”, the model gives the first "
        f"the higher probability of being {run.positive_name} {percent(m['auc'])} of the time."
    )


def _cards(run: Run) -> list[tuple[str, str]]:
    return [
        ("What was decided", _decided_words(run)),
        ("How sure", _sure_words(run)),
        ("Compared with whom", _compared_words(run)),
    ]


def _decided_words(run: Run) -> str:
    m, n = run.metrics, int(run.metrics.get("n", 0))
    patients = f" of {m['n_patients']} patients" if m.get("n_patients") else ""
    text = f"{n} images{patients}; {percent(m.get('prevalence') or 0)} are {run.positive_name}. "
    at = run.at_threshold
    if at.get("accuracy") is not None:
        by = threshold_words(run) if len(run.classes) == 2 else MOST_PROBABLE
        text += f"{share(round(at['accuracy'] * n), n)} were classified correctly, {by}"
        if at.get("majority_accuracy") is not None:
            text += f" (always naming the most frequent class: {percent(at['majority_accuracy'])})"
        text += ". "
    if at.get("sensitivity") is not None and at.get("specificity") is not None:
        text += (
            f"{percent(at['sensitivity'])} of the {run.positive_name} images were found (sensitivity), "
            f"{percent(at['specificity'])} of the others were correctly ruled out (specificity)."
        )
    return text


def _sure_words(run: Run) -> str:
    m = run.metrics
    low, high = interval(m, "auc")
    text = ""
    if low is not None and high is not None:
        method = str(m.get("interval_method", "")).partition(",")[0]
        text += f"With 95 % confidence the AUC lies between {low:.3f} and {high:.3f}"
        text += f" ({method}). " if method else ". "
    text += _calibration_words(m)
    if run.cases is not None and len(run.cases):
        undecided = int((~run.cases.decided).sum())
        text += f"{share(undecided, len(run.cases))} answers are undecided within their Monte-Carlo error. "
    if leak_words(run):
        text += f"Caution: {leak_words(run)}"
    return text


def _calibration_words(m: Mapping[str, Any]) -> str:
    """What slope and intercept say of the probabilities, as far as their intervals allow."""
    slope, intercept = m.get("calibration_slope_ci95"), m.get("calibration_intercept_ci95")
    if not slope or not intercept:
        return ""
    faults = [
        fault
        for fault, found in (
            ("too extreme", slope[1] < 1), ("not extreme enough", slope[0] > 1),
            ("too low on average", intercept[0] > 0), ("too high on average", intercept[1] < 0),
        )
        if found
    ]  # fmt: skip
    text = "The probabilities are " + (
        " and ".join(faults) or "well calibrated, as far as these images can show"
    )
    return f"{text} (calibration slope {estimate(m, 'calibration_slope', 2)}). "


def _compared_words(run: Run) -> str:
    m = run.metrics
    text = ""
    if m.get("majority_accuracy") is not None and m.get("accuracy") is not None:
        text += (
            f"Always naming the most frequent class would be right {percent(m['majority_accuracy'])} of the time; "
            f"{MOST_PROBABLE}, the model is right {percent(m['accuracy'])} of the time. "
        )
    baselines: Mapping[str, Any] = m.get("baselines") or {}
    for name, values in baselines.items():
        if values.get("auc") is None:
            continue
        text += f"{short(name)[:1].upper()}{short(name)[1:]}: AUC {estimate(values, 'auc')}"
        p = values.get("auc_difference_p")
        if values.get("auc_difference") is not None and p is not None:
            word = "higher" if values["auc_difference"] > 0 else "lower"
            sure = "" if p < 0.05 else ", which may be chance"
            text += f"; the model is {abs(values['auc_difference']):.3f} {word} ({p_words(p)}{sure})"
        text += ". "
    return text + ("" if baselines else "No other model was trained for comparison.")


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """(name, value, detail) of the key figures."""
    m = run.metrics
    tiles = []
    for name, key, digits in (
        ("AUC", "auc", 3),
        ("Balanced accuracy, most probable class", "balanced_accuracy", 3),
        ("Log loss", "log_loss", 3),
        ("Calibration error", "ece", 3),
    ):
        low, high = interval(m, key)
        detail = "no interval" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"
        tiles.append((name, "–" if m.get(key) is None else f"{m[key]:.{digits}f}", detail))
    if m.get("nfe_per_image") is not None:
        time = m.get("seconds_per_image")
        detail = "" if time is None else f"{seconds(time)} per image"
        tiles.append(("Network evaluations", f"{m['nfe_per_image']:.0f}", detail))
    return tiles


def _headline_figure(run: Run) -> Panel | None:
    m = run.metrics
    if m.get("auc") is None:
        return None
    rows = [Row("ScoreBayes", m["auc"], *interval(m, "auc"), strong=True)]
    for name, values in (m.get("baselines") or {}).items():
        rows.append(Row(name, values.get("auc"), *interval(values, "auc"), note="no AUC"))
    caption = (
        "AUC with 95 % interval: the true value probably lies within the bar. The dashed line at 0.5 is "
        "guessing. Overlapping bars do not mean that two models are equal: see the paired comparison."
    )
    return Panel(figures.forest(rows, "headline", "AUC", 0.5), caption)


# --------------------------------------------------------------------------------------------------
# The model card


def _card(run: Run, summary: Summary, not_done: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """Values of the template of the model card, in the format of the Hugging Face Hub."""
    m = run.metrics
    names = (("roc_auc", "auc"), ("accuracy", "accuracy"), ("brier_score", "brier"))
    results = [{"type": kind, "value": m[key], "name": key} for kind, key in names if m.get(key) is not None]
    data = str(run.source.get("name") or "unknown")
    tags = ["medical-imaging", "score-based-generative-model", "bayes", "calibration"]
    header: dict[str, Any] = {
        "library_name": "scorebayes",
        "pipeline_tag": "image-classification",
        "tags": tags + ["synthetic-data"] * run.synthetic,
    }
    if results:
        entry = {
            "task": {"type": "image-classification"},
            "dataset": {"type": data, "name": run.title, "split": run.split},
            "metrics": results,
        }
        header["model-index"] = [{"name": run.command_name, "results": [entry]}]
    table = [(label, estimate(m, name)) for name, label in METRICS if m.get(name) is not None]
    return {
        "header": [(key, _yaml(value)) for key, value in header.items()],
        "run": run,
        "headline": _line(summary.headline),
        "cards": [(_line(title), _line(text)) for title, text in summary.cards],
        "metrics": [(_line(label), _line(value)) for label, value in table],
        "model": [(_line(name), _line(value)) for name, value in model(run).tables[0].rows],
        "title": _line(run.title),
        "licence": _line(str(run.source.get("licence") or "not recorded")),
        "citation": _line(str(run.source.get("citation") or "not recorded")),
        "not_done": [(_line(title), _line(missing)) for title, missing, _ in not_done],
        "version": version("scorebayes"),
    }


def _yaml(value: Any) -> str:
    """JSON is YAML; "<" is written as its code, for readers that take the header for HTML."""
    return json.dumps(plain(value), ensure_ascii=True).replace("<", "\\u003c")


def _line(text: str) -> str:
    """One line that Markdown takes as plain text, also inside a table."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    for character in "\\`*_[]|#":
        line = line.replace(character, "\\" + character)
    return line.replace("&", "&amp;").replace("<", "&lt;")
