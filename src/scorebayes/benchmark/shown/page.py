"""The page of all benchmark results, from the JSON files alone: nothing is computed here.

A missing value is shown as a dash. A missing file is listed with the command that makes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scorebayes.benchmark.names import (
    BENCHMARKS,
    OURS,
    PRETRAINED,
    REFERENCE,
    TITLES,
    WITH_REFERENCE,
    is_alone,
    title_of,
)
from scorebayes.benchmark.shown.markdown import (
    ABSENT,
    difference,
    embedded,
    not_run,
    origin,
    span,
    spread,
    table,
)
from scorebayes.benchmark.shown.tables import STUDIES, Study, site_of
from scorebayes.benchmark.stored.hindsight import hindsight_accuracy
from scorebayes.benchmark.stored.posteriors import Said, posteriors_path, read_posteriors
from scorebayes.errors import DataError
from scorebayes.storage.atomic import write_atomically

METRICS = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
    "log_loss": "log loss (nats)",
    "ece": "ECE",
    "ece_by_chance": "ECE by chance",
}
VARIED = {
    "per-class": "training patients (or images) per class",
    "imbalance": "imbalance, at a fixed number of training patients (or images)",
    "label-noise": "share of wrong training labels",
}
EXPECTED_CURVES = [
    *((name, vary) for vary in ("per-class", "imbalance") for name in ("breastmnist", "pneumoniamnist", "phantom")),
    ("breastmnist", "label-noise"),
]  # fmt: skip

INTRODUCTION = """# Benchmarks

Written by `scorebayes benchmark page --readme docs/results.md` from the files in `benchmarks/results/`.
All choices were made on training and validation images. Each cell gives the mean over the seeds, ± the standard deviation
over the seeds, and a 95 % interval in brackets (the mean of the seeds' intervals, by patient if a patient has several
images). The intervals of paired differences draw both the trainings (seeds) and the patients: they say how a model trained
anew would do on new patients. "Accuracy" and "balanced accuracy" are of the most probable class, that is, at a threshold
of one half where there are two classes. "ECE by chance" is the calibration error to expect by chance alone, if the
probabilities were right. "Accuracy in hindsight" uses the threshold that is best for these same test images. Nobody may
choose it that way in practice; the gap to the accuracy shows how much is lost by the threshold and not by the ranking of
the images.

Our models:

- `scorebayes-generative`: the class score of the pixels, with the default evaluations per class (20, antithetic, one chosen
  noise for all images), and the Gaussian mixtures of the wavelet coefficients
  ([decision 0018](decisions/0018-mixtures-of-wavelets.md)).
- `scorebayes-pixels-alone` and `scorebayes-wavelets-alone`: its two parts, each calibrated separately.
- `scorebayes-generative-64`: both parts with 64 evaluations.
- `scorebayes-with-resnet18`: the mean log-odds of the generative posterior and of the ResNet-18. The posterior uses 64
  evaluations, or the default number in the curves.
- `scorebayes-best`: the mean log-odds of the generative posterior and of the two baselines with the lowest validation
  log-loss. It is our best model on validation images. `two-baselines` is its control: the two baselines without our model.
- `-ensemble`: the mean log-posterior of the seeds.

The first three lines have no discriminative term. A date after the name of a model means that it was measured earlier and
not repeated."""

CURVES_INTRODUCTION = """## Few, rare and mislabelled training images

Every point is trained again for every seed. The seed also draws the training subset. The test split is always complete.

- *Per class*: the number of training patients of each class (images, if the data set names no patients). Smaller sets are
  subsets of larger ones. "All" is the complete training split.
- *Imbalance*: the positive class is made rare. The number of training patients is the same at every ratio: the largest
  number that all ratios allow.
- *Wrong labels*: the share of the training patients of each class that get a wrong label. The test labels are unchanged.
- *Validation*: "whole" is the complete official validation split with its true labels, the same for all models. With few
  images per class it is larger than the training set, and both our calibration and the tuning of the baselines use it.
  Such a point shows the effect of few *training* images, not of few labels. `--reduce-val` gives the validation split
  the class counts of the training set, scaled to its size, and the same share of wrong labels.
- *Prior*: the class shares of the complete training split, for all models, as if the prevalence were known.
- *Steps*: fewer with fewer images, by the rule given with each curve. Baseline networks get the same training budget.
- *Label-free start*: unless a curve says "from scratch", our model was first trained without labels on all images of the
  training split, once for all points of a seed. The baselines cannot use such images. See
  [decision 0009](decisions/0009-a-label-free-start.md).

Differences are our AUC minus that of the other model: the mean over the seeds. Its 95 % interval includes the chance of the
test patients and that of the seed, which draws the training subset, too."""

FROM_SCRATCH_THERE = (
    "the encoder was pretrained on other images; only `logistic` and the wavelets alone do without it"
)

STUDIES_INTRODUCTION = """## Cost, maps, foreign images, corruptions, attacks

Each study except the last was measured on one trained run. Results from before 2026-11-26 use only the pixels, without the
wavelets, and independent noise."""


def write_page(results: Path, figures: Path, out: Path) -> Path:
    """Write the Markdown page; figures are linked relative to it. DataError where a file cannot be read."""
    benchmarks = {name: _read(results / f"{name}.json") for name in BENCHMARKS}
    said = {name: read_posteriors(posteriors_path(results / f"{name}.json")) for name in BENCHMARKS}
    curves = [(name, vary, path.stem, _read(path)) for name, vary, path in _curves(results)]
    parts = [INTRODUCTION, *_side_by_side(benchmarks), *_leads_over_reference(curves)]
    benchmarks |= {name: found for name in PRETRAINED if (found := _read(results / f"{name}.json"))}
    said |= {name: read_posteriors(posteriors_path(results / f"{name}.json")) for name in PRETRAINED}
    for name, title in {
        name: of for name, of in {**BENCHMARKS, **PRETRAINED}.items() if name in benchmarks
    }.items():
        parts += [f"## {title}", *_benchmark(benchmarks[name], name, said[name])]
        drawn = [f for f in sorted(figures.glob(f"{name}-*.svg")) if _vary(f.stem, name) is None]
        parts += [embedded(figure, out) for figure in drawn]
    parts.append(CURVES_INTRODUCTION)
    for name, vary, stem, found in curves:
        parts += [f"### {BENCHMARKS.get(name, name)}: {VARIED[vary]}", *_curve(found, name, vary)]
        parts += _drawn(found, figures / f"{stem}.svg", out)
    parts.append(STUDIES_INTRODUCTION)
    for study in _studies(results):
        found = _read(results / f"{study.stem}.json")
        parts += [f"### {study.title}", *_study(found, study)]
        parts += _drawn(found, figures / f"{study.figure}.svg", out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, "\n\n".join(parts) + "\n")
    return out


def quote_glance(page: Path, readme: Path) -> Path:
    """Update the tables that another page quotes: any table whose first column is named like one under "At a glance".

    page: as written by ``write_page``. Returns ``readme``.
    """
    glance = page.read_text(encoding="utf-8").partition("## At a glance")[2].partition("\n## ")[0]
    tables = {_first_column(found): found for found in _TABLE.findall(glance)}
    text = readme.read_text(encoding="utf-8")
    write_atomically(readme, _TABLE.sub(lambda found: tables.get(_first_column(found[0]), found[0]), text))
    return readme


_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


def _first_column(table: str) -> str:
    return table.split("|", 2)[1].strip()


def _side_by_side(benchmarks: Mapping[str, dict[str, Any] | None]) -> Iterable[str]:
    """The table that other pages quote: AUC and accuracy of the models."""
    tests = {
        name: {m: model["test"] for m, model in found["models"].items()}
        for name, found in benchmarks.items()
        if found is not None
    }
    if not tests:
        return
    yield "## At a glance"
    yield "Test AUC ± standard deviation over the seeds, then, after the slash, accuracy of the most probable class:"
    parts = [m for test in tests.values() for m in test if is_alone(m)]
    models = dict.fromkeys([OURS, *parts, *TITLES])
    titles = {m: title_of(m) for m in models if any(m in test for test in tests.values())}
    yield table(
        ["model", *(BENCHMARKS[name] for name in tests)],
        [
            [title, *(_auc_and_accuracy(test.get(m, {})) for test in tests.values())]
            for m, title in titles.items()
        ],
    )


def _leads_over_reference(curves: Iterable[tuple[str, str, str, dict[str, Any] | None]]) -> Iterable[str]:
    """The leads over the ResNet-18 on the usual curves, each a name, what varies, file, content."""
    leads: dict[str, dict[str, str]] = {}
    for name, vary, stem, found in curves:
        if found is None or stem != f"{name}-{vary}":
            continue
        for point in found["points"]:
            for ours in (OURS, WITH_REFERENCE):
                column = f"{BENCHMARKS.get(name, name)}: {TITLES[ours]}"
                lead = point["paired"].get(ours, {}).get(REFERENCE)
                leads.setdefault(_subset(vary, point), {})[column] = difference(lead)[0]
    if leads:
        columns = list(dict.fromkeys(column for row in leads.values() for column in row))
        yield "Test AUC minus that of the ResNet-18, with 95 % interval, for few, rare or mislabelled training images:"
        yield table(
            ["training images", *columns],
            [[row, *(cells.get(column, ABSENT) for column in columns)] for row, cells in leads.items()],
        )


def _subset(vary: str, point: Mapping[str, Any]) -> str:
    """A short name for the training images of a point."""
    if vary == "label-noise":
        return f"{100 * point['value']:.0f} % of the labels wrong"
    if vary == "imbalance":
        return f"1:{point['shown']}"
    return point["shown"] if point["value"] is None else f"{point['shown']} per class"


def _auc_and_accuracy(test: Mapping[str, Any]) -> str:
    auc, accuracy = (dict(test.get(metric) or {}, ci95=None) for metric in ("auc", "accuracy"))
    return f"{spread(auc)} / {spread({**accuracy, 'std': None})}" if test else ABSENT


def _benchmark(found: dict[str, Any] | None, name: str, said: Said) -> Iterable[str]:
    if found is None:
        yield not_run(f"scorebayes benchmark {name}")
        return
    majority = found.get("majority_accuracy")
    facts = [
        f"{found['test_images']} test images" if "test_images" in found else "",
        f"{len(found['seeds'])} seed(s)" if "seeds" in found else "",
        f"{found['steps']} steps" if "steps" in found else "",
        f"{found['nfe_per_class']:.0f} evaluations per class" if "nfe_per_class" in found else "",
        FROM_SCRATCH_THERE if found.get("pretrained") else "",
        "" if majority is None else f"always naming the most frequent class: accuracy {majority:.3f}",
        _near_copies(found.get("near_copies")),
        *(f"`{name}`: {', '.join(parts)}" for name, parts in found.get("mixtures", {}).items()),
    ]
    yield origin(found, facts)
    models = found.get("models", {})
    further = {
        "accuracy in hindsight": hindsight_accuracy(said, found["positive"]) if said else {},
        "AUC without near copies": found.get("near_copies", {}).get("auc", {}),
    }
    further = {title: of for title, of in further.items() if of}
    yield table(
        ["model", *METRICS.values(), *further],
        [
            [
                _dated(name, model),
                *(spread(model.get("test", {}).get(metric)) for metric in METRICS),
                *(spread(of.get(name)) for of in further.values()),
            ]
            for name, model in models.items()
        ],
    )
    rows = [
        [ours, rival, *difference(lead)]
        for ours, rivals in found.get("paired", {}).items()
        for rival, lead in rivals.items()
    ]
    if rows:
        yield "Paired tests on the same test images:"
        yield table(["model", "minus", "AUC difference", "p"], rows)
    else:
        yield "The file has no paired tests."


def _near_copies(found: Mapping[str, Any] | None) -> str:
    """How many test images are near copies of a training image; empty if this was not checked."""
    if found is None:
        return ""
    return f"{span(found['images'])} test images have a correlation above {found['correlation']} with a training image"


def _dated(name: str, model: Mapping[str, Any]) -> str:
    """A model, with the date of its measurement if it differs from that of the file."""
    return f"{name} ({model['measured']['written']})" if "measured" in model else name


def _curve(found: dict[str, Any] | None, name: str, vary: str) -> Iterable[str]:
    if found is None:
        yield not_run(f"scorebayes benchmark data-curves {name} --vary {vary}")
        return
    yield origin(
        found,
        [
            f"{len(found['seeds'])} seed(s)",
            f"rare class: {found['rare_class']}" if vary == "imbalance" else "",
            f"validation split: {found['validation']}",
            f"steps: {found['steps_rule']}",
            f"prior: {found['prior']}",
        ],
    )
    pairs = list(
        dict.fromkeys(
            (ours, rival) for p in found["points"] for ours in p["paired"] for rival in p["paired"][ours]
        )
    )
    header = [
        {"imbalance": "1 to", "label-noise": "wrong labels"}.get(vary, "per class"),
        "training images", "steps", *(f"AUC {model}" for model in found["models"]),
    ]  # fmt: skip
    header += [f"{ours} minus {rival}" for ours, rival in pairs]
    rows = []
    for point in found["points"]:
        cells = [spread(point["models"][model]["test"].get("auc")) for model in found["models"]]
        leads = [difference(point["paired"].get(ours, {}).get(rival))[0] for ours, rival in pairs]
        images, steps = (span(point[key]) for key in ("train_images", "steps"))
        rows.append([point["shown"], images, steps, *cells, *leads])
    yield table(header, rows)


def _curves(results: Path) -> list[tuple[str, str, Path]]:
    """Benchmark, what is varied, and the file: the expected curves and any others, without quick trials."""
    found = {results / f"{name}-{vary}.json": (name, vary) for name, vary in EXPECTED_CURVES}
    for path in sorted(results.glob("*.json")):
        for name in BENCHMARKS:
            vary = _vary(path.stem, name)
            if vary is not None and not path.stem.endswith("-quick"):
                found.setdefault(path, (name, vary))
    return [(name, vary, path) for path, (name, vary) in found.items()]


def _study(found: dict[str, Any] | None, study: Study) -> Iterable[str]:
    command = f"scorebayes benchmark {study.command}"
    return [not_run(command)] if found is None else study.tables({"command": command, **found})


def _drawn(found: dict[str, Any] | None, figure: Path, page: Path) -> list[str]:
    """The figure of a file's content, if both exist."""
    return [embedded(figure, page)] if found is not None and figure.exists() else []


def _studies(results: Path) -> Iterator[Study]:
    """Those expected, each before further files of its kind (``speed-NAME.json``); last, ``NAME-site.json`` of others."""
    for study in STUDIES:
        yield study
        for path in sorted(results.glob(f"{study.stem}-*.json")):
            title = f"{study.title}: {path.stem.removeprefix(study.stem + '-')}"
            yield study._replace(stem=path.stem, title=title, figure="")
    for name in BENCHMARKS:
        further = site_of(name)
        if further not in STUDIES and (results / f"{further.stem}.json").exists():
            yield further


def _vary(stem: str, name: str) -> str | None:
    """What the curve file of a benchmark varies; None for other files."""
    rest = stem.removeprefix(f"{name}-")
    return next((vary for vary in VARIED if rest != stem and rest.startswith(vary)), None)


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a file; None if it does not exist."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not a JSON file ({error}).", "Run its benchmark again.") from error
