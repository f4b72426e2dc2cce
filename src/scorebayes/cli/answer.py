"""Commands that use a trained run: score, evaluate, predict, explain, sample, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scorebayes.cli.common import Device, Estimator, RunDir, Split, open_run_dir, out, say_next, show_metrics

EXIT_QUARANTINE = 3


def score(
    run_dir: RunDir,
    split: Split = "test",
    estimator: Estimator = "",
    device: Device = "auto",
) -> None:
    """Write the evidence table of a split; run it again to resume.

    Example: scorebayes score runs/breast --split test
    """
    from scorebayes.stages.score import score_split

    run = open_run_dir(run_dir, device)
    with run.locked():
        if estimator and split != "val":
            score_split(run, "val", estimator)  # its calibration is fitted there
        path = score_split(run, split, estimator)
    option = f" --estimator {estimator}" if estimator else ""
    say_next(f"evidence table: {path}", f"scorebayes evaluate {run_dir} --split {split}{option}")


def evaluate(run_dir: RunDir, split: Split = "test", estimator: Estimator = "") -> None:
    """Compute posteriors, predictions and metrics of a scored split, and compare them with the trained baselines.

    Example: scorebayes evaluate runs/breast --split test
    """
    from scorebayes.stages import evaluate as stage

    metrics = stage.evaluate(open_run_dir(run_dir, "cpu"), split, estimator)
    show_metrics(metrics)
    say_next(f"metrics: {run_dir}/metrics-{split}*.json", f"scorebayes report {run_dir}")


def predict(
    run_dir: RunDir,
    files: Annotated[
        list[Path], typer.Argument(help="Image files (PNG, JPEG, TIFF, NPY, DICOM), or folders of them.")
    ],
    csv: Annotated[Path, typer.Option("--out", help="CSV file to write.")],
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
) -> None:
    """Classify image files. Unusable or atypical files get a reason instead of a posterior.

    The exit code is 3 if a file was unusable.

    Example: scorebayes predict runs/breast case1.dcm case2.png --out predictions.csv
    """
    from scorebayes.stages.predict import predict_files, read_prior
    from scorebayes.storage.spreadsheet import csv_text

    run = open_run_dir(run_dir, device)
    log_prior = read_prior(prior, run) if prior else None
    chosen = [name.strip() for name in partners.split(",") if name.strip()]
    frame = predict_files(run, files, force=force, log_prior=log_prior, partners=chosen)
    csv.parent.mkdir(parents=True, exist_ok=True)
    csv.write_text(csv_text(frame), encoding="utf-8", errors="backslashreplace")
    bad = frame[frame["status"] != "ok"]
    out.print(f"{len(frame) - len(bad)} of {len(frame)} files classified: {csv}")
    for _, row in bad.iterrows():
        typer.echo(f"{row['file']}: {row['status']}", err=True)
    if bad["status"].str.startswith("quarantined").any():
        raise typer.Exit(EXIT_QUARANTINE)


def explain(
    run_dir: RunDir,
    file: Annotated[Path | None, typer.Argument(help="Image file. Leave it out with --split.")] = None,
    split: Annotated[str, typer.Option(help="Explain the cases of this split that the report shows.")] = "",
    folder: Annotated[
        Path | None, typer.Option("--out", help="Output folder. Default: RUN/explained/FILE.")
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
) -> None:
    """Show which pixels drove the decision, by noise level: pictures, arrays and numbers that sum to the log-odds.

    Example: scorebayes explain runs/breast case.dcm
    """
    from scorebayes.explain.counterfactual import START, STEPS
    from scorebayes.explain.pictures import explain_cases, explain_file, read_class
    from scorebayes.stages.predict import read_prior

    if (file is None) == (split == ""):
        raise typer.BadParameter("give either an image file or --split")
    run = open_run_dir(run_dir, device)
    if file is None:
        say_next(f"evidence: {explain_cases(run, split)}", f"scorebayes report {run_dir}")
        return
    folder = folder or run_dir / "explained" / file.stem
    found = explain_file(
        run, file, folder,
        target=read_class(target, run), log_prior=read_prior(prior, run) if prior else None,
        with_counterfactual=counterfactual, guidance=guidance,
        log_snr=START if log_snr is None else log_snr, steps=STEPS if steps is None else steps,
    )  # fmt: skip
    for text in found["warnings"]:
        typer.echo(f"warning: {text}", err=True)
    out.print(
        f"log-odds of {found['target']}: {found['log_odds']:.2f} +- {found['log_odds_std_error']:.2f} = evidence "
        f"{found['evidence']:.2f} + offset {found['offset']:.2f}\nwritten: {folder}",
        soft_wrap=True,
        highlight=False,
    )


def sample(
    run_dir: RunDir,
    per_class: Annotated[int, typer.Option(help="Samples of each class.")] = 4,
    sampler: Annotated[
        str, typer.Option(help="second-order, ode, sde or predictor-corrector.")
    ] = "second-order",
    steps: Annotated[int | None, typer.Option(help="Sampler steps. Default: depends on the sampler.")] = None,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance weight; 0 = none.")] = 0.0,
    device: Device = "auto",
) -> None:
    """Draw images of every class and find the nearest training image of each (memorisation check).

    Example: scorebayes sample runs/breast --per-class 8
    """
    from scorebayes.stages.sample import draw_samples

    grid = draw_samples(open_run_dir(run_dir, device), per_class, sampler, steps, guidance)
    say_next(f"samples: {grid}", f"scorebayes report {run_dir}")


def report(run_dir: RunDir) -> None:
    """Write report.html (one file, readable offline), report.json and the model card.

    Example: scorebayes report runs/breast
    """
    from scorebayes.report import write_report

    open_run_dir(run_dir, "cpu")
    out.print(f"report: {write_report(run_dir)}", soft_wrap=True)
