"""How the model decides: posteriors, noise levels, and where it should not be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scorebayes import metrics
from scorebayes.decision.table import EvidenceTable
from scorebayes.plots import charts as figures
from scorebayes.plots.heat import heat_map
from scorebayes.plots.svg import short
from scorebayes.report.files import Run
from scorebayes.report.parts import (
    Panel,
    Section,
    Table,
    estimate,
    not_evaluated,
    p_words,
    percent,
    share,
)


def posteriors(run: Run) -> Section:
    title, cases = "Posterior and log-odds", run.cases
    if cases is None or not len(cases):
        return not_evaluated(run, "posteriors", title)
    names = (run.negative_name, run.positive_name)
    panels = [
        Panel(
            figures.posteriors(cases.score, cases.truth, names, run.metrics.get("threshold")),
            f"How often the model gave each probability: {names[1]} images upwards, {names[0]} images downwards.",
        )
    ]
    numbers: dict[str, Any] = {"prob": cases.score, "truth": cases.truth.astype(int)}
    if cases.log_odds is not None and np.isfinite(cases.log_odds).any():
        finite = np.isfinite(cases.log_odds)
        value, error = cases.log_odds[finite], cases.std_error[finite]
        panels.append(
            Panel(
                figures.log_odds(value, error, cases.truth[finite], names),
                "All images, sorted by log-odds. The line through a dot shows two Monte-Carlo standard errors: "
                "more evaluations make it shorter, more patients do not.",
            )
        )
        of = {names[outcome]: value[cases.truth[finite] == outcome] for outcome in (False, True)}
        middle = float(np.nanmedian(error)) if np.isfinite(error).any() else None
        caption = "The same log-odds as histograms. The bar at the top shows two standard errors of a typical image."
        panels.append(
            Panel(
                figures.histograms(of, middle, "log-odds-histogram", f"log-odds of {names[1]}", "Log-odds"),
                caption,
            )
        )
        numbers |= {"median_std_error": middle, "log_odds": value, "std_error": error}
    words = [] if len(panels) > 1 else ["Not done: log-odds are not recorded in the predictions."]
    if run.evidence is None:
        words.append("Not done: there is no evidence table of this split.")
    elif len(run.evidence):
        for name, block in run.evidence.blocks.items():
            if block.kind == "log-ratio":  # says nothing of the image under one class alone
                continue
            more, found = _class_values(run, run.evidence, name)
            panels += more
            numbers |= found
    return Section("posteriors", title, words, panels=panels, numbers=numbers)


def _class_values(run: Run, table: EvidenceTable, name: str) -> tuple[list[Panel], dict[str, Any]]:
    """The value of a source for each image under its true class and under the best other class."""
    block, weights = table.blocks[name], run.weights.get(name, np.empty(0))
    label = {"density": "log-likelihood [nats]", "lower-bound": "bound [nats]"}.get(block.kind, block.kind)
    if block.kind == "class-score" and len(weights) == block.n_levels:
        label = "weighted class score"
    else:
        weights = np.full(block.n_levels, 1 / block.n_levels)
    total = np.einsum("nly,l->ny", block.level_means, weights)
    labels, rows = table.labels, np.arange(len(table))
    own = total[rows, labels]
    rest = np.where(np.arange(total.shape[1]) == labels[:, None], -np.inf, total).max(1, initial=-np.inf)
    variance = block.variance_of_mean(weights, block.draws[:, rows, labels])
    error = float(np.nanmedian(np.sqrt(variance))) if np.isfinite(variance).any() else None
    order = [y for y in range(len(run.classes)) if y != run.positive]
    order.insert(1, run.positive)  # which gives it the colour that it has everywhere
    of = {short(run.classes[y]): own[labels == y] for y in order}
    panels = [
        Panel(
            figures.histograms(of, error, f"class-likelihood-{name}", label, f"Under the true class: {name}"),
            "Value of the estimator for each image under its true class, by class. The bar at the top shows two "
            "standard errors of a typical image.",
        ),
        Panel(
            figures.class_values(own, rest, label, f"class-values-{name}"),
            "To the right of 0, the true class explains the image better than any other class, before prior and bias.",
        ),
    ]
    better = float(np.mean(own > rest))
    return panels, {
        "own_class": own, "best_other_class": rest, "own_class_std_error": error, "true_class_fits_best": better
    }  # fmt: skip


def levels(run: Run) -> Section:
    title, table = "Which sources and noise levels decide", run.evidence
    if table is None:
        command = run.command("score", "--split", run.split)
        return Section("levels", title, missing="there is no evidence table of this split", command=command)
    truth = table.labels == run.positive
    if not truth.any() or truth.all():
        return Section("levels", title, ["The scored images have only one class."])
    words, panels, rows, numbers = [], [], [], {}
    for name, block in table.blocks.items():
        means, weights = block.level_means, run.weights.get(name, np.empty(0))
        difference = means[:, :, run.positive] - np.delete(means, run.positive, axis=2).mean(2)
        fitted = len(weights) == block.n_levels
        found: dict[str, Any] = {"log_snr": block.level_log_snr, "weights": weights}
        if block.n_levels > 1 and not block.exact:
            auc = np.array([metrics.delong(truth, column)[0] for column in difference.T])
            intervals = [metrics.auc_interval(truth, column) or [np.nan, np.nan] for column in difference.T]
            low, high = np.array(intervals).T
            found |= {"auc": auc, "auc_low": low, "auc_high": high}
            panels += _level_panels(name, found, fitted)
        if not fitted:
            words.append(f"Not done: no weights were fitted for the levels of {name}.")
        part = difference @ (weights if fitted else np.full(block.n_levels, 1 / block.n_levels))
        found |= {
            "alone_auc": metrics.delong(truth, part)[0],
            "spread": float(part.std()) if fitted else None,
        }
        spread = "–" if found["spread"] is None else f"{found['spread']:.2f}"
        rows.append(
            (name, str(block.n_levels), f"{block.nfe.mean():.0f}", f"{found['alone_auc']:.3f}", spread)
        )
        numbers[name] = found
    header = ("Source", "Levels", "Evaluations per class", "AUC alone", "Spread of its log-odds")
    caption = "Each source of evidence. The spread is the standard deviation over the images, in nats"
    return Section("levels", title, words, [Table(caption, header, rows)], panels, numbers=numbers)


def _level_panels(name: str, found: Mapping[str, Any], fitted: bool) -> list[Panel]:
    """How well each noise level of a source decides and, where weights were fitted, how much it counts."""
    log_snr = found["log_snr"]
    panels = [
        Panel(
            figures.level_auc(
                log_snr, found["auc"], found["auc_low"], found["auc_high"], f"level-auc-{name}"
            ),
            f"How well each single noise level of {name} separates the images. Left: much noise, coarse structure. Right: "
            "little noise, fine detail. The band assumes independent images (DeLong).",
        )
    ]
    if fitted:
        panels.append(
            Panel(
                figures.level_weights(log_snr, found["weights"], f"level-weights-{name}"),
                f"The weight of each noise level of {name} in the decision, fitted on validation images.",
            )
        )
    return panels


def abstention(run: Run) -> Section:
    title, cases = "Abstention: coverage and risk", run.cases
    if cases is None or not len(cases):
        return not_evaluated(run, "abstention", title)
    curve = metrics.risk_coverage(cases.labels, cases.prob)
    point = None
    decided = cases.decided
    if decided.any():
        wrong = cases.prob.argmax(1) != cases.labels
        point = (float(decided.mean()), float(wrong[decided].mean()))
    panel = Panel(
        figures.coverage(curve, point),
        "How many answers are wrong if the model answers only where it is most confident? From the most "
        "confident image on the left to all images on the right. The answer is the most probable class.",
    )
    undecided = int((~decided).sum())
    words = [
        f"{share(undecided, len(cases))} answers lie within two Monte-Carlo standard errors of the threshold and are "
        "reported as undecided."
    ]
    numbers = {"coverage": curve, "undecided": undecided, "decided_point": point, "foreign": run.ood}
    if not run.ood:
        words.append(f"Not done: foreign images (`{_measure(run, 'ood')}`).")
        return Section("abstention", title, words, panels=[panel], numbers=numbers)
    more, table = _foreign(run.ood)
    return Section("abstention", title, words + more, [table], [panel], numbers=numbers)


def _foreign(found: Mapping[str, Any]) -> tuple[list[str], Table]:
    """Which foreign images were declined, in words and by kind."""
    own = found["in_distribution"]
    words = [
        "Typicality checks whether an image is as easy for the network as the validation images, and whether it looks like "
        f"the training images. It declines {percent(own['flagged'])} of the {own['n']} test images; the table shows its "
        "share for foreign images. For comparison, a plain rule declines images of low likelihood, with the same intended "
        "share of false alarms. An AUC below 0.5 means that the foreign images are more likely than the test images."
    ]
    if not found["judged_by_prediction"]:
        words.append(
            "This run was calibrated without the appearance of images: its predictions decline by the noise levels "
            "alone (third column)."
        )
    rows = [
        (
            short(name),
            f"{percent(row['flagged'])} of {row['n']}",
            percent(row["flagged_by_levels"]) if "flagged_by_levels" in row else "refused",
            f"{row['auc']:.3f}" if "auc" in row else "refused",
            percent(row["flagged_by_likelihood"]),
            f"{row['auc_by_likelihood']:.3f}" if "auc_by_likelihood" in row else "refused",
        )
        for name, row in found["kinds"].items()
    ]
    header = ("Kind", "Declined", "by noise levels alone", "AUC", "by likelihood", "AUC of likelihood")
    return words, Table("Foreign images", header, rows)


def robustness(run: Run) -> Section:
    title, found, attacks = "Corrupted and attacked images", run.robustness, run.adversarial
    if not found and not attacks:
        command = _measure(run, "robustness")
        return Section("robustness", title, missing="no corrupted images were tested", command=command)
    words, tables, panels = [], [], []
    if found:
        words.append(
            f"{found['images']} test images under {len({r['kind'] for r in found['conditions']}) - 1} corruptions, at "
            f"severities {', '.join(map(str, found['severities']))}. Nothing was refitted."
        )
        tables += [_corruption_means(found), _corruption_kinds(found)]
        model = next(iter(found["summary"]))
        kinds = list(dict.fromkeys(r["kind"] for r in found["conditions"][1:]))
        value = {(r["kind"], r["severity"]): r["models"][model]["auc"] for r in found["conditions"]}
        grid = np.array([[value[kind, severity] for severity in found["severities"]] for kind in kinds])
        svg = heat_map(
            grid, kinds, [str(s) for s in found["severities"]], "robustness-auc", "AUC", min(0.5, grid.min())
        )
        panels.append(Panel(svg, f"AUC of {model} for every corruption, from mild to severe."))
    else:
        words.append(f"Not done: corruptions (`{_measure(run, 'robustness')}`).")
    if attacks:
        words.append(
            "An attacker may change every pixel by at most the budget, using gradients (PGD) or trial and error (Square). "
            "No model here was trained to resist attacks."
        )
        rows = [
            (
                short(row["model"]),
                "none" if row["attack"] == "none" else f"{row['attack']}, {row['budget']}/255",
                estimate(row, "accuracy", 2),
                percent(row["declined"]) if "declined" in row else "–",
            )
            for row in attacks["results"]
        ]
        header = ("Model", "Attack", "Accuracy (most probable class)", "Declined as atypical")
        tables.append(Table(f"{attacks['images']} attacked test images", header, rows))
    else:
        words.append(f"Not done: attacks (`{_measure(run, 'adversarial')}`).")
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
    header = ("Model", "AUC, clean", "AUC", "Accuracy (most probable class)", "Log loss", "Error, relative")
    return Table("Means over all corruptions and severities", header, rows)


def _corruption_kinds(found: Mapping[str, Any]) -> Table:
    """The worst severity of every corruption: the model's AUC, its abstentions and its lead over each baseline."""
    worst = max(found["severities"])
    peers = found["baselines"]
    rows = []
    for row in found["conditions"]:
        if row["severity"] == worst:
            declined = "not judged" if row["declined"] is None else percent(row["declined"])
            leads = [
                f"{estimate(row['against'][peer], 'auc_difference')}, "
                f"{p_words(row['against'][peer]['auc_difference_p_holm'])}"
                for peer in peers
            ]
            first = next(iter(row["models"].values()))
            rows.append((row["kind"], f"{first['auc']:.3f}", declined, *leads))
    header = ("Corruption", "AUC", "Declined", *(f"AUC minus that of {short(peer)}" for peer in peers))
    caption = f"At severity {worst}; p-values are adjusted for the number of comparisons (Holm)"
    return Table(caption, header, rows)


def _measure(run: Run, benchmark: str) -> str:
    """The command of a benchmark that writes its results where the report looks for them."""
    return run.command(f"benchmark {benchmark}", "--out", run.folder / f"{benchmark}.json")
