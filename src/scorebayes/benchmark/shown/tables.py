"""The tables of all studies except accuracy (cost, maps, foreign images, corruptions, attacks), from their JSON files.

Every function takes the content of one file and yields paragraphs of Markdown. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from scorebayes.benchmark.names import BENCHMARKS, title_of
from scorebayes.benchmark.shown.markdown import ABSENT, number, origin, spread, table, within

Found = Mapping[str, Any]


class Study(NamedTuple):
    """A file of results (its stem), the heading of its tables, the command that makes it, and its figure, if any."""

    stem: str
    title: str
    command: str
    tables: Callable[[Found], Iterable[str]]
    figure: str = ""


def speed(found: Found) -> Iterable[str]:
    """Seconds, evaluations and AUC of a run's own estimator and of the paper's computation."""
    yield origin(found, [])
    for run in found["runs"]:
        in_batches = run["paper_in_batches"]["speedup_of_default"]
        yield (
            f"{run['data']}, {run['size']} pixels: one image at a time, {run['speedup_vs_paper']:.0f} times fewer seconds "
            f"and {run['speedup_vs_paper_cpu']:.0f} times less processor time than the paper's computation. If its "
            f"evaluations cost as little as in network calls of 32 rows, ours would take {in_batches:.0f} times less of it. "
            f"In a batch of 64, one of our images takes {run['ms_per_image']:.0f} ms. Our estimator: "
            f"`{run['contestants']['default']['estimator']}`."
        )
        yield table(
            ["computation", "test images", "seconds per image", "evaluations per class", "AUC"],
            [
                [
                    name,
                    str(of["images"]),
                    number(of["wall_seconds_per_image"]),
                    number(of["nfe_per_class"], 0),
                    within(of["auc"], of["auc_ci95"]),
                ]
                for name, of in run["contestants"].items()
            ],
        )


def evaluations(found: Found) -> Iterable[str]:
    """AUC against network evaluations."""
    yield origin(found, [f"{found['test_images']} test images ({found['flow_images']} for the flow)"])
    yield table(
        ["estimator", "evaluations per class", "AUC", "accuracy", "log loss (nats)", "ECE"],
        [
            [
                name,
                number(point["evaluations_per_class"], 0),
                within(point["auc"], point["auc_ci95"]),
                *(number(point[metric]) for metric in ("accuracy", "log_loss", "ece")),
            ]
            for name, points in found["curves"].items()
            for point in points
        ],
    )


def evidence(found: Found) -> Iterable[str]:
    """Where the maps lie, and how soon the decision changes when their strongest pixels are replaced."""
    yield origin(found, [])
    for run in found["runs"].values():
        yield f"{run['data']}, {run['images']} test images of {run['patients']} patients."
        if run["lesion"]:
            yield (
                f"Share of each map that lies in the known lesion. The lesion has {spread(run['lesion']['area'])} of the "
                f"area and {spread(run['lesion']['brightness'])} of the brightness:"
            )
            shares = {
                "share": "of the whole map", "share_positive": "of the evidence for the class",
                "smoothed_share_positive": "the same, smoothed",
            }  # fmt: skip
            yield table(
                ["map", *shares.values()],
                [
                    [name, *(spread(of.get(share)) for share in shares)]
                    for name, of in run["lesion"]["methods"].items()
                ],
            )
        favoured = (
            ""
            if "judged_by" in found
            else ". Our model judges with the draws that made our maps, which favours them"
        )
        yield f"Area under the posterior as the strongest pixels for the class are replaced (lower is better){favoured}:"
        methods = {name: None for by in run["deletion"].values() for of in by.values() for name in of}
        yield table(
            ["judged by", "replaced by", *methods],
            [
                [judge, f"{fill} values", *(spread(of.get(m, {}).get("area")) for m in methods)]
                for judge, by_fill in run["deletion"].items()
                for fill, of in by_fill.items()
            ],
        )


def foreign(found: Found) -> Iterable[str]:
    """Which foreign images are declined, by typicality and by a plain likelihood."""
    own = found["in_distribution"]
    yield origin(found, [found["data"], f"{own['n']} test images"])
    rows = [
        ["its own test images", own, ABSENT],
        *([kind, of, number(of["auc"])] for kind, of in found["kinds"].items()),
    ]
    yield table(
        ["images", "number", "declined", "by noise levels alone", "by low likelihood", "AUC against the test images"],
        [
            [
                kind,
                str(of["n"]),
                within(of["flagged"], of["flagged_ci95"]),
                *(number(of[by]) for by in ("flagged_by_levels", "flagged_by_likelihood")),
                auc,
            ]
            for kind, of, auc in rows
        ],
    )  # fmt: skip


def corruptions(found: Found) -> Iterable[str]:
    """Means over all corruptions and severities."""
    kinds = {c["kind"] for c in found["conditions"] if c["severity"]}
    yield origin(
        found,
        [
            found["data"],
            f"{found['images']} test images",
            f"{len(kinds)} corruptions of {len(found['severities'])} severities",
        ],
    )
    metrics = {
        "mean_auc": "AUC", "auc_lost": "AUC lost", "mean_accuracy": "accuracy", "mean_log_loss": "log loss (nats)",
        "mean_corruption_error": "error relative to logistic regression",
    }  # fmt: skip
    yield table(
        ["model", *metrics.values()],
        [[model, *(number(of.get(m)) for m in metrics)] for model, of in found["summary"].items()],
    )


def attacks(found: Found) -> Iterable[str]:
    """Accuracy under each attack."""
    yield origin(
        found,
        [found["data"], f"{found['images']} test images", f"{found['steps']} gradient steps", f"{found['queries']} queries"],
    )  # fmt: skip
    yield table(
        ["model", "attack", "budget", "accuracy", "declined"],
        [
            [
                row["model"],
                row["attack"],
                f"{row['budget']}/255" if row["budget"] else ABSENT,
                within(row["accuracy"], row["accuracy_ci95"]),
                number(row.get("declined")),
            ]
            for row in found["results"]
        ],
    )


def site(found: Found) -> Iterable[str]:
    """The gain from labelled images of the site of use."""
    numbers = list(dict.fromkeys(n for of in found["models"].values() for n in of))
    yield origin(
        found, [f"{found['repeats']} draws of the patients per seed; accuracy / ECE on the other patients"]
    )
    yield table(
        ["calibrated on labelled test patients", *numbers],
        [
            [title_of(model), *(_accuracy_and_ece(of.get(n)) for n in numbers)]
            for model, of in found["models"].items()
        ],
    )


def _accuracy_and_ece(found: Mapping[str, Any] | None) -> str:
    return f"{spread(found['accuracy'])} / {spread(found['ece'])}" if found else ABSENT


def site_of(name: str) -> Study:
    """The study of labelled images from the site of use, on a benchmark."""
    title = f"{BENCHMARKS[name]}: labelled images from the site of use"
    return Study(f"{name}-site", title, f"site benchmarks/results/{name}.json", site)


STUDIES = (
    Study("speed", "Seconds, against the paper's computation", "speed RUN", speed),
    Study("curves", "AUC against network evaluations", "curves RUN", evaluations, "auc-vs-evaluations"),
    Study("evidence", "Maps of the decisive pixels", "evidence RUN...", evidence),
    Study("ood", "Foreign images", "ood RUN", foreign),
    Study("robustness", "Corruptions", "robustness RUN", corruptions, "robustness"),
    Study("adversarial", "Attacks", "adversarial RUN", attacks),
    site_of("pneumoniamnist"),
)
