"""Commands that use a trained run: score, evaluate, predict, explain, sample, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scorebayes.cli.common import (
    Device,
    Estimator,
    RunDir,
    Split,
    is_mask_run,
    metrics_words,
    open_run_dir,
    shift_warnings,
)
from scorebayes.cli.face import DONE, SOME_UNANSWERED, Told
from scorebayes.errors import command


def score(
    run_dir: RunDir,
    split: Split = "test",
    estimator: Estimator = "",
    device: Device = "auto",
) -> Told:
    """Write the evidence table of a split; run it again to resume.

    Example: scorebayes score runs/breast --split test
    """
    from scorebayes.cli import masks
    from scorebayes.stages.score import read_table, score_split

    if is_mask_run(run_dir):
        return masks.score(run_dir, split, device)
    run = open_run_dir(run_dir, device)
    with run.locked():
        if estimator and split != "val":
            score_split(run, "val", estimator)  # its calibration is fitted there
        path = score_split(run, split, estimator)
    table = read_table(run, split, estimator)
    seconds, failed = float(table.seconds.mean()), len(table) - len(table.usable())
    option = ("--estimator", estimator) if estimator else ()
    words = f"{len(table)} images, {seconds:.3f} s each" + (f"; {failed} failed" if failed else "")
    facts = {
        "run": run_dir, "split": split, "table": path, "images": len(table), "failed": failed, "seconds_per_image": seconds,
    }  # fmt: skip
    following = command("evaluate", run_dir, "--split", split, *option)
    return Told(facts, f"{words}\nevidence table: {path}\nnext: {following}", (), _code(failed))


def evaluate(run_dir: RunDir, split: Split = "test", estimator: Estimator = "") -> Told:
    """Compute posteriors, predictions and metrics of a scored split, and compare them with the trained baselines.

    Example: scorebayes evaluate runs/breast --split test
    """
    from scorebayes.cli import masks
    from scorebayes.stages import evaluate as stage
    from scorebayes.stages.score import suffix

    if is_mask_run(run_dir):
        return masks.evaluate(run_dir, split)
    metrics = stage.evaluate(open_run_dir(run_dir, "cpu"), split, estimator)
    written = run_dir / f"metrics-{split}{suffix(estimator)}.json"
    words = f"{metrics_words(metrics)}\nmetrics: {written}\nnext: {command('report', run_dir)}"
    facts = {"run": run_dir, "written": written, **metrics}
    return Told(facts, words, shift_warnings(run_dir, metrics), _code(metrics["failed"]))


def predict(
    run_dir: RunDir,
    files: Annotated[
        list[Path], typer.Argument(help="Image files (PNG, JPEG, TIFF, NPY, DICOM), or folders of them.")
    ],
    csv: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="CSV file to write; - for standard output. For masks: a folder. [default: a short table]",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also give a posterior for images that look unlike the training data."),
    ] = False,
    prior: Annotated[
        str,
        typer.Option(
            help="Class prior at the site the files come from: prevalence of the positive class (0.01), one number per "
            "class (0.2,0.3,0.5), train or uniform. Default: the prior of the run. The threshold shifts with it."
        ),
    ] = "",
    partners: Annotated[
        str,
        typer.Option(
            "--with",
            help="Baselines of the run, separated by commas. Adds columns with the combined posterior.",
        ),
    ] = "",
    device: Device = "auto",
) -> Told:
    """Classify image files, or find their masks. Unusable or atypical files get a reason instead of a posterior.

    The exit code is 3 if a file got no posterior.

    Example: scorebayes predict runs/breast case1.dcm case2.png --out predictions.csv
    """
    from scorebayes.cli import masks
    from scorebayes.cli.predictions import rows_of, table_of
    from scorebayes.errors import ConfigError
    from scorebayes.stages.predict import predict_files, read_prior
    from scorebayes.storage.atomic import write_atomically
    from scorebayes.storage.sealed import require_free
    from scorebayes.storage.spreadsheet import csv_text

    if is_mask_run(run_dir):
        return masks.predict(run_dir, files, csv, device)
    if csv is not None and csv.is_dir():
        raise ConfigError(f"--out {csv} is a folder.", "Name a file for the table.")
    if csv is not None and str(csv) != "-":
        require_free(csv)
    run = open_run_dir(run_dir, device)
    log_prior = read_prior(prior, run) if prior else None
    chosen = [name.strip() for name in partners.split(",") if name.strip()]
    frame = predict_files(run, files, force=force, log_prior=log_prior, partners=chosen)
    facts = rows_of(run, frame, log_prior)
    unanswered = facts["files"] - facts["classified"]
    told = f"{facts['classified']} of {facts['files']} files classified"
    warnings: tuple[str, ...] = ()
    table = ""
    if csv is None:
        words = f"{table_of(facts)}\n\n{told}"
    elif str(csv) == "-":
        words, table = "", csv_text(frame)
    else:
        csv.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(csv, csv_text(frame).encode("utf-8", "backslashreplace"))
        facts["written"], words = csv, f"{told}: {csv}"
    if csv is not None:
        warnings = tuple(
            f"{row['file']}: {row['status']}" for row in facts["answers"] if row["status"] != "ok"
        )
    return Told(facts, words, warnings, _code(unanswered), table)


def explain(
    run_dir: RunDir,
    file: Annotated[Path | None, typer.Argument(help="Image file. Leave it out with --split.")] = None,
    split: Annotated[str, typer.Option(help="Explain the cases of this split that the report shows.")] = "",
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Output folder. Default: one for each file, in RUN/explained."),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="Class to explain. Default: the positive class of two, or the predicted class of more."
        ),
    ] = "",
    counterfactual: Annotated[bool, typer.Option(help="Also show the image as the other class.")] = True,
    log_snr: Annotated[
        float | None,
        typer.Option(help="Log-SNR at which the counterfactual turns back. Lower values change more."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps of the counterfactual.")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(min=0, help="Guidance weight of the counterfactual. Higher values change more."),
    ] = None,
    prior: Annotated[
        str, typer.Option(help="Class prior at the site the file comes from, as in predict.")
    ] = "",
    device: Device = "auto",
) -> Told:
    """Show which pixels drove the decision, by noise level: pictures, arrays and numbers that sum to the log-odds.

    Example: scorebayes explain runs/breast case.dcm
    """
    from scorebayes.explain.counterfactual import START, STEPS
    from scorebayes.explain.pictures import explain_cases, explain_file, folder_of, read_class
    from scorebayes.stages.predict import read_prior, require_there
    from scorebayes.storage.sealed import require_free

    if (file is None) == (split == ""):
        raise typer.BadParameter("give either an image file or --split")
    run = open_run_dir(run_dir, device)
    if file is None:
        with run.locked():
            path = explain_cases(run, split)
        words = f"evidence: {path}\nnext: {command('report', run_dir)}"
        return Told({"run": run_dir, "split": split, "written": path}, words)
    require_there([file])
    if folder is not None:
        require_free(folder)
    folder = folder or folder_of(run, file)
    found = explain_file(
        run, file, folder,
        target=read_class(target, run), log_prior=read_prior(prior, run) if prior else None,
        with_counterfactual=counterfactual, guidance=guidance,
        log_snr=START if log_snr is None else log_snr, steps=STEPS if steps is None else steps,
    )  # fmt: skip
    pictures = [path for path in ("evidence.png", "counterfactual.png") if path in found["written"]]
    return Told(
        {"run": run_dir, "folder": folder, **found},
        f"{_verdict_words(found)}\n"
        f"log-odds of {found['target']}: {found['log_odds']:.2f} ± {found['log_odds_std_error']:.2f} = evidence "
        f"{found['evidence']:.2f} + offset {found['offset']:.2f}\n"
        f"pictures: {', '.join(str(folder / name) for name in pictures)}",
        tuple(found["warnings"]),
    )


def _verdict_words(found: dict[str, Any]) -> str:
    """Probabilities, and the decision at the frozen threshold."""
    each = ", ".join(f"{name} {prob:.3f}" for name, prob in found["posterior"].items())
    side = "above" if found["above_threshold"] else "below"
    open_ = "" if found["decided"] else "; undecided, because the Monte-Carlo error reaches across it"
    return (
        f"probability: {each}\nverdict: {found['verdict']}, {side} the threshold of {found['threshold']:.3f} for "
        f"{found['positive']}{open_}"
    )


def sample(
    run_dir: RunDir,
    per_class: Annotated[int, typer.Option(min=1, help="Samples of each class.")] = 4,
    sampler: Annotated[
        str, typer.Option(help="second-order, ode, sde or predictor-corrector.")
    ] = "second-order",
    steps: Annotated[int | None, typer.Option(help="Sampler steps. Default: depends on the sampler.")] = None,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance weight; 0 = none.")] = 0.0,
    device: Device = "auto",
) -> Told:
    """Draw images of every class and find the nearest training image of each (memorisation check).

    Example: scorebayes sample runs/breast --per-class 8
    """
    from scorebayes.stages.sample import draw_samples

    run = open_run_dir(run_dir, device)
    with run.locked():
        grid, nearest = draw_samples(run, per_class, sampler, steps, guidance)
    each = ", ".join(f"{name} {distance:.2f}" for name, distance in nearest.items())
    words = f"samples: {grid}\nsmallest distance to a training image: {each}"
    facts = {"run": run_dir, "written": grid, "per_class": per_class, "smallest_distance": nearest}
    return Told(facts, f"{words}\nnext: {command('report', run_dir)}")


def report(run_dir: RunDir) -> Told:
    """Write report.html (one file, readable offline), report.json and the model card.

    Example: scorebayes report runs/breast
    """
    from scorebayes.cli import masks
    from scorebayes.report import write_report

    if is_mask_run(run_dir):
        return masks.report(run_dir)
    open_run_dir(run_dir, "cpu")
    path = write_report(run_dir)
    names = ("report.html", "report.json", "model-card.md")
    return Told({"run": run_dir, "written": [path.with_name(name) for name in names]}, f"report: {path}")


def _code(unanswered: int) -> int:
    return SOME_UNANSWERED if unanswered else DONE
