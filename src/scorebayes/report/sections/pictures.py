"""Pictures: cases with their evidence, and generated images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scorebayes.plots.svg import short
from scorebayes.report.files import Cases, Run
from scorebayes.report.parts import (
    Gallery,
    Picture,
    Section,
    percent,
    png_address,
)


def examples(run: Run) -> Section:
    title, stored, cases = "Best, worst and median images", run.arrays("thumbnails.npz"), run.cases
    if stored is None or cases is None:
        command = run.command("evaluate", "--split", run.split)
        return Section("examples", title, missing="no images of the cases were stored", command=command)
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
                png_address(image),
                f"{short(run.classes[cases.labels[row]])} {percent(prob)}",
                short(cases.image_id[row], 26),
            )
            for prob, row, image in group
        ]
        galleries.append(Gallery(name, pictures))
        maps = [evidence[str(cases.image_id[row])] for _, row, _ in group if cases.image_id[row] in evidence]
        if maps:
            galleries.append(Gallery(f"{name}: evidence", [picture for picture, _ in maps]))
    words = [
        "Sorted by the probability of the true class. Below each image: its class, that probability, and its id."
    ]
    if evidence:
        words.append(
            "Evidence: orange pixels count for the class named below the map, blue pixels count against it. A map plus the "
            "part that belongs to no pixel (bias, prior, offsets of the sources) sums to the log-odds, shown with its "
            "Monte-Carlo standard error. Maps are smoothed for display."
        )
    else:
        command = run.command("explain", "--split", run.split)
        words.append(f"Not done: evidence maps (which pixels drove the decision). To make them: `{command}`")
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
        picture = Picture(png_address(stored["overlay"][index]), title, short(name, 26))
        found[name] = picture, {"target": run.classes[target], **figures_of}
    return found


def samples(run: Run) -> Section:
    title, stored = "Generated images and their nearest training images", run.arrays("samples.npz")
    if stored is None and not run.has_image_score:
        return Section("samples", title, missing="the run has no score of the pixels, so it draws no images")
    if stored is None:
        return Section("samples", title, missing="no images were generated", command=run.command("sample"))
    galleries = []
    for label in np.unique(stored["labels"]):
        rows = np.flatnonzero(stored["labels"] == label)[:8]
        name = short(run.classes[label]) if 0 <= label < len(run.classes) else f"class {label}"
        pictures = [Picture(png_address(stored["images"][row]), "generated") for row in rows]
        galleries.append(Gallery(f"{name}: generated", pictures))
        if "nearest" in stored:
            pictures = [
                Picture(
                    png_address(stored["nearest"][row]),
                    "nearest real",
                    f"distance {stored['distance'][row]:.2f}",
                )
                for row in rows
            ]
            galleries.append(Gallery(f"{name}: nearest training image of each", pictures))
    words = [
        "What the model believes each class looks like. A generated image that equals its nearest training image was "
        "memorised. Distances are root sums of squared grey-value differences."
    ]
    distance = stored.get("distance", np.zeros(0))
    numbers = {
        "n": len(stored["images"]),
        "smallest_distance": float(distance.min()) if len(distance) else None,
    }
    return Section("samples", title, words, galleries=galleries, numbers=numbers)
