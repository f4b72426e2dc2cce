"""The command line: thin faces of the stages, each of which works on a run directory.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from scorebayes import __version__
from scorebayes.cli.benchmark import app as benchmark_app
from scorebayes.cli.data import app as data_app
from scorebayes.errors import ScoreBayesError

if TYPE_CHECKING:
    from scorebayes.runs.run import Run

app = typer.Typer(
    help="Classify medical images with score-based generative models and Bayes' rule. Not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(data_app, name="data")
app.add_typer(benchmark_app, name="benchmark")
out = Console()

EXIT_QUARANTINE = 3

RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory made by 'scorebayes train'.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Split = Annotated[str, typer.Option(help="train, val or test.")]
Estimator = Annotated[
    str,
    typer.Option(
        help="denoising, bound, flow or paper; by default the run's own. Others write files of their own."
    ),
]
_SOURCES = (
    "phantom, medmnist:FILE.npz, folder:DIR, arrays:FILE.npz, ddsm64:PATH, cbis-ddsm:ROOT, inbreast:ROOT or "
    "vindr-mammo:ROOT"
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"scorebayes {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Read by ``main`` (debug) or at once (version)."""


@app.command()
def train(
    data: Annotated[str, typer.Option(help=f"KIND[:PATH]: {_SOURCES}.")],
    run_dir: Annotated[Path, typer.Option("--out", help="Run directory to make.")],
    config: Annotated[
        list[Path] | None,
        typer.Option(help="TOML file; overrides the preset. May be given again: later ones override."),
    ] = None,
    preset: Annotated[str, typer.Option(help="tiny, light, small or paper.")] = "small",
    size: Annotated[int | None, typer.Option(help="Side of the prepared image in pixels.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps. [default: the preset's, or by the number of images]")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Cap on the training time.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the split, the weights and all random numbers.")
    ] = None,
    label_free: Annotated[
        bool, typer.Option("--label-free", help="Use no label: a start for other runs, from all images.")
    ] = False,
    init: Annotated[
        Path | None,
        typer.Option(help="Run directory whose weights are the start, for example a label-free one."),
    ] = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Learn the class-conditional score and calibrate it on the validation split.

    Example: scorebayes train --data medmnist:breastmnist.npz --out runs/breast --steps 3000
    """
    from scorebayes.runs import inputs
    from scorebayes.runs.config import read_toml
    from scorebayes.runs.device import pick_device
    from scorebayes.stages import train as stages

    options: dict[str, Any] = {"prepare": {}, "train": {}}
    for section, name, value in (
        ("prepare", "size", size),
        ("train", "steps", steps),
        ("train", "minutes", minutes),
        ("train", "null_label", 1.0 if label_free else None),
        ("train", "init", str(init.resolve()) if init else None),
    ):
        if value is not None:
            options[section][name] = value
    if seed is not None:
        options["seed"] = seed
    layers = [read_toml(path) for path in config or ()]
    run = stages.train(
        run_dir, inputs.absolute_source(data), [*layers, options], preset, pick_device(device), resume=resume
    )
    if run.config.train.label_free:
        _say_next(
            f"trained without labels: {run.path}", f"scorebayes train --init {run_dir} --data ... --out ..."
        )
    else:
        _say_next(f"trained and calibrated: {run.path}", f"scorebayes score {run_dir} --split test")


@app.command()
def tune(run_dir: RunDir, device: Device = "auto") -> None:
    """Fit on the validation split where in noise the evaluations fall; used from then on if it is better.

    Example: scorebayes tune runs/breast
    """
    from scorebayes.stages.tune import tune

    run = _open(run_dir, device)
    with run.locked():
        found = tune(run)
    for name, (mean, std), loss in (
        ("so far", found.before, found.log_loss_before),
        ("fitted", found.fitted, found.log_loss_fitted),
    ):
        out.print(f"{name}: log-SNR {mean:.2f} +- {std:.2f}, validation log-loss {loss:.4f}")
    done = "the fitted levels are used from now on" if found.better else "the levels stay as they were"
    _say_next(done, f"scorebayes score {run_dir} --split test")


@app.command()
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

    run = _open(run_dir, device)
    with run.locked():
        if estimator and split != "val":
            score_split(run, "val", estimator)  # its calibration is fitted there
        path = score_split(run, split, estimator)
    option = f" --estimator {estimator}" if estimator else ""
    _say_next(f"evidence table: {path}", f"scorebayes evaluate {run_dir} --split {split}{option}")


@app.command()
def baseline(
    run_dir: RunDir,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="logistic, hog-svm, resnet18, resnet50, densenet121, efficientnet-b0 or vit.",
        ),
    ],
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps of a network; by default, what costs as much as the run's own training."
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train another classifier on the same images, tuned and calibrated on the same validation split, for comparison.

    Example: scorebayes baseline runs/breast resnet18
    """
    from scorebayes.baselines import fit_baseline, predict_baseline

    run = _open(run_dir, device)
    with run.locked():
        found = fit_baseline(run, name, steps)
        splits = [split for split in ("val", "test") if (run.split["split"] == split).any()]
        for split in splits:
            predict_baseline(run, name, split)
    done = f"{found.record['title']}: validation log-loss {found.record['val_log_loss']:.4f}"
    _say_next(
        f"{done}, {found.record['seconds']:.0f} s", f"scorebayes evaluate {run_dir} --split {splits[-1]}"
    )


@app.command()
def evaluate(run_dir: RunDir, split: Split = "test", estimator: Estimator = "") -> None:
    """Posterior, predictions and metrics of a scored split, beside the baselines that were trained.

    Example: scorebayes evaluate runs/breast --split test
    """
    from scorebayes.stages import evaluate as stage

    metrics = stage.evaluate(_open(run_dir, "cpu"), split, estimator)
    _show_metrics(metrics)
    _say_next(f"metrics: {run_dir}/metrics-{split}*.json", f"scorebayes report {run_dir}")


@app.command()
def recalibrate(
    run_dir: RunDir,
    data: Annotated[str, typer.Option(help=f"Labelled images of the place of use, KIND[:PATH]: {_SOURCES}.")],
    new_dir: Annotated[Path, typer.Option("--out", help="Run directory to make.")],
    prior: Annotated[
        str,
        typer.Option(help="Class prior there, as in predict; by default the class shares of these images."),
    ] = "",
    device: Device = "auto",
) -> None:
    """A run for another place: the same weights, calibration and threshold fitted on labelled images from there.

    Example: scorebayes recalibrate runs/breast --data folder:here --out runs/breast-here
    """
    from scorebayes.stages.predict import read_prior
    from scorebayes.stages.recalibrate import recalibrate as fit

    run = _open(run_dir, device)
    found = fit(run, data, new_dir, read_prior(prior, run) if prior else None)
    _show_table({"as it was": found.before, "recalibrated (cross-validated)": found.after})
    _say_next(f"made: {new_dir}", f"scorebayes predict {new_dir} FILES --out predictions.csv")


@app.command()
def predict(
    run_dir: RunDir,
    files: Annotated[
        list[Path], typer.Argument(help="Image files (PNG, JPEG, TIFF, NPY, DICOM), or folders of them.")
    ],
    csv: Annotated[Path, typer.Option("--out", help="CSV file to write.")],
    force: Annotated[
        bool, typer.Option("--force", help="Give the posterior of images unlike the training data too.")
    ] = False,
    prior: Annotated[
        str,
        typer.Option(
            help="Class prior where the files come from: prevalence of the positive class (0.01), one number per class "
            "(0.2,0.3,0.5), train or uniform; by default the run's own. The threshold moves with it."
        ),
    ] = "",
    partners: Annotated[
        str,
        typer.Option(
            "--with",
            help="Baselines of the run, with commas: give the posterior of all together in columns beside.",
        ),
    ] = "",
    device: Device = "auto",
) -> None:
    """Classify image files. Bad and unlike ones get a reason instead of a posterior; the exit code is then 3.

    Example: scorebayes predict runs/breast case1.dcm case2.png --out predictions.csv
    """
    from scorebayes.stages.predict import predict_files, read_prior
    from scorebayes.storage.spreadsheet import csv_text

    run = _open(run_dir, device)
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


@app.command()
def explain(
    run_dir: RunDir,
    file: Annotated[Path | None, typer.Argument(help="Image file; or none, with --split.")] = None,
    split: Annotated[
        str, typer.Option(help="Explain the cases of this split whose pictures the report shows.")
    ] = "",
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder to write; by default RUN/explained/FILE.")
    ] = None,
    target: Annotated[
        str, typer.Option(help="Class explained; by default the positive one of two, the predicted of more.")
    ] = "",
    counterfactual: Annotated[bool, typer.Option(help="Show the image as the other class, too.")] = True,
    log_snr: Annotated[
        float | None, typer.Option(help="Turning point of the counterfactual; lower changes more.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps of the counterfactual.")] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Guidance of the counterfactual; more changes more.")
    ] = None,
    prior: Annotated[str, typer.Option(help="Class prior where the file comes from, as in predict.")] = "",
    device: Device = "auto",
) -> None:
    """Which pixels decided, noise level by noise level: pictures, arrays and figures whose sum is the log-odds.

    Example: scorebayes explain runs/breast case.dcm
    """
    from scorebayes.explain.counterfactual import START, STEPS
    from scorebayes.explain.pictures import explain_cases, explain_file, read_class
    from scorebayes.stages.predict import read_prior

    if (file is None) == (split == ""):
        raise typer.BadParameter("give an image file or --split, one of the two")
    run = _open(run_dir, device)
    if file is None:
        _say_next(f"evidence: {explain_cases(run, split)}", f"scorebayes report {run_dir}")
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


@app.command()
def sample(
    run_dir: RunDir,
    per_class: Annotated[int, typer.Option(help="Samples of each class.")] = 4,
    sampler: Annotated[
        str, typer.Option(help="second-order, ode, sde or predictor-corrector.")
    ] = "second-order",
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler; by default its own.")] = None,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance weight; 0 = none.")] = 0.0,
    device: Device = "auto",
) -> None:
    """Draw images of every class and find the nearest training image of each (memorisation check).

    Example: scorebayes sample runs/breast --per-class 8
    """
    from scorebayes.stages.sample import draw_samples

    grid = draw_samples(_open(run_dir, device), per_class, sampler, steps, guidance)
    _say_next(f"samples: {grid}", f"scorebayes report {run_dir}")


@app.command()
def report(run_dir: RunDir) -> None:
    """Write report.html (one file, readable offline), report.json and the model card.

    Example: scorebayes report runs/breast
    """
    from scorebayes.report import write_report

    _open(run_dir, "cpu")
    out.print(f"report: {write_report(run_dir)}", soft_wrap=True)


@app.command()
def doctor(
    data_root: Annotated[Path | None, typer.Option(help="Folder of data to look at.")] = None,
) -> None:
    """Versions, devices, data root and free space.

    Example: scorebayes doctor --data-root ../data
    """
    import torch

    from scorebayes.runs.device import environment, pick_device

    found = environment(pick_device("auto"))
    table = Table(show_header=False, title="ScoreBayes doctor")
    table.add_row("Python", found["python"])
    for name, version in found["versions"].items():
        table.add_row(name, version)
    table.add_row("system", f"{found['system']}, {found['processor']}, {found['cores']} cores")
    table.add_row("device", f"{found['device']} {found['accelerator'] or ''}".strip())
    table.add_row("CUDA / MPS", f"{torch.cuda.is_available()} / {torch.backends.mps.is_available()}")
    table.add_row("threads", str(found["threads"]))
    table.add_row("free space here", f"{shutil.disk_usage('.').free / 1e9:.1f} GB")
    if data_root is not None:
        entries = sorted(p.name for p in data_root.iterdir()) if data_root.is_dir() else None
        table.add_row(
            "data root", f"{data_root}: " + (", ".join(entries) if entries is not None else "absent")
        )
    out.print(table)
    if data_root is not None and not data_root.is_dir():
        raise typer.Exit(1)


@app.command()
def demo(
    data: Annotated[str, typer.Option(help=f"KIND[:PATH]: {_SOURCES}.")] = "phantom",
    run_dir: Annotated[Path, typer.Option("--out", help="Run directory to make.")] = Path("runs/demo"),
    device: Device = "auto",
) -> None:
    """The main job in a few minutes: train, score, evaluate and report, on synthetic mammograms or on your data.

    Example: scorebayes demo
    """
    from scorebayes.runs.device import pick_device
    from scorebayes.runs.inputs import absolute_source
    from scorebayes.stages.demo import demo

    metrics, path = demo(run_dir, absolute_source(data), pick_device(device))
    _show_metrics(metrics)
    which = (
        "held-out patients" if metrics["split"] == "test" else "the validation split (there is no test split)"
    )
    out.print(f"AUC on {which}: {metrics['auc']:.3f}\nreport: {path}", soft_wrap=True)


def _open(run_dir: Path, device: str) -> Run:
    from scorebayes.runs.run import open_run

    return open_run(run_dir, device)


def _show_table(models: dict[str, dict[str, Any]]) -> None:
    """Metrics of models by their titles, fitting 80 columns; further intervals are in the files and the report."""
    table = Table("", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("AUC", "95 % interval", "accuracy", "balanced", "log loss", "ECE"):
        table.add_column(name, no_wrap=True)

    def cell(figures: dict[str, Any], name: str) -> str:
        value = figures.get(name)
        return "-" if value is None else f"{value:.3f}"

    for title, figures in models.items():
        bounds = figures.get("auc_ci95")
        interval = f"[{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "-"
        others = (cell(figures, name) for name in ("accuracy", "balanced_accuracy", "log_loss", "ece"))
        table.add_row(title, cell(figures, "auc"), interval, *others)
    out.print(table)


def _show_metrics(metrics: dict[str, Any]) -> None:
    _show_table({"ScoreBayes": metrics, **metrics["baselines"]})
    cost = f"{metrics['nfe_per_image']:.0f} network evaluations and {metrics['seconds_per_image']:.3f} s an image"
    out.print(f"always the larger class: accuracy {metrics['majority_accuracy']:.3f}; {cost}")
    for name, found in metrics["shift"].items():
        if found["noticed"]:
            typer.echo(
                f"warning: images of class {name!r} can be told from the training images by their look (AUC "
                f"{found['auc']:.2f}): calibration and threshold may not hold on this split. 'scorebayes recalibrate' "
                "fits them on labelled images.",
                err=True,
            )


def _say_next(done: str, command: str) -> None:
    out.print(f"{done}\nnext: {command}", soft_wrap=True, highlight=False)


def main() -> None:
    """Entry point: one clear line for an error that is the input's fault, a traceback only with --debug."""
    # Before torch is loaded: threads that wait for others leave the core to other programs (docs/decisions/0019).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    debug = "--debug" in sys.argv
    if not debug:
        warnings.showwarning = lambda message, *_, **__: typer.echo(f"warning: {message}", err=True)
    try:
        app()
    except ScoreBayesError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command with --resume goes on.", err=True)
        sys.exit(130)
    except OSError as error:
        if debug:
            raise
        typer.echo(f"error: {error.strerror or error}: {error.filename or ''}", err=True)
        sys.exit(1)
