"""Commands that fit something: train, tune, baseline, recalibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scorebayes.cli.common import (
    SOURCES,
    DataOptions,
    Device,
    RunDir,
    open_run_dir,
    out,
    say_next,
    show_table,
)


def train(
    data: Annotated[str, typer.Option(help=f"KIND[:PATH]: {SOURCES}.")],
    run_dir: Annotated[Path, typer.Option("--out", help="Run directory to create.")],
    option: DataOptions = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            help="TOML file that overrides the preset. Can be given more than once; later files win."
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="tiny, light, small or paper.")] = "small",
    size: Annotated[int | None, typer.Option(help="Side of the prepared image in pixels.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps. [default: from the preset or the number of images]")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Limit on the training time, in minutes.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the split, the weights and all random numbers.")
    ] = None,
    label_free: Annotated[
        bool,
        typer.Option(
            "--label-free", help="Train on all images without labels, as a starting point for other runs."
        ),
    ] = False,
    init: Annotated[
        Path | None,
        typer.Option(help="Run directory whose weights to start from, for example a label-free run."),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            help="Pretrained encoder for the features of the images: lite0, hf:NAME_OR_FOLDER, onnx:FILE or timm:NAME."
        ),
    ] = "",
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Use no pretrained weights, whatever the size of the images."),
    ] = False,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
) -> None:
    """Learn the class-conditional score and calibrate it on the validation split.

    Example: scorebayes train --data medmnist:breastmnist.npz --out runs/breast --steps 3000
    """
    from scorebayes.data import parse_options
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
    if option:
        options["data"] = {"options": parse_options(option)}
    if seed is not None:
        options["seed"] = seed
    if encoder and from_scratch:
        raise typer.BadParameter("give --encoder or --from-scratch, not both")
    if encoder:
        options["evidence"] = {"features": {"encoder": encoder}}
    if from_scratch:
        options["evidence"] = {"sources": ["pixels", "wavelets"]}
    layers = [read_toml(path) for path in config or ()]
    run = stages.train(
        run_dir, inputs.absolute_source(data), [*layers, options], preset, pick_device(device), resume=resume
    )
    if run.config.train.label_free:
        say_next(
            f"trained without labels: {run.path}", f"scorebayes train --init {run_dir} --data ... --out ..."
        )
    else:
        say_next(f"trained and calibrated: {run.path}", f"scorebayes score {run_dir} --split test")


def tune(run_dir: RunDir, device: Device = "auto") -> None:
    """Choose the noise levels on the validation split, and keep them if they lower the validation log-loss.

    Example: scorebayes tune runs/breast
    """
    from scorebayes.stages.tune import tune

    run = open_run_dir(run_dir, device)
    with run.locked():
        found = tune(run)
    for name, (mean, std), loss in (
        ("before", found.before, found.log_loss_before),
        ("fitted", found.fitted, found.log_loss_fitted),
    ):
        out.print(f"{name}: log-SNR {mean:.2f} +- {std:.2f}, validation log-loss {loss:.4f}")
    done = (
        "the fitted noise levels are used from now on" if found.better else "the noise levels are unchanged"
    )
    say_next(done, f"scorebayes score {run_dir} --split test")


def baseline(
    run_dir: RunDir,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="logistic, hog-svm, resnet18, resnet50, densenet121, efficientnet-b0, vit, logistic-on-features, "
            "fine-tuned or fine-tuned-last-block.",
        ),
    ],
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Training steps of a network. Default: the same training budget as the run; fine-tuned: 240.",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train another classifier on the same images, tuned and calibrated on the same validation split, for comparison.

    Example: scorebayes baseline runs/breast resnet18
    """
    from scorebayes.baselines import fit_baseline, predict_baseline

    run = open_run_dir(run_dir, device)
    with run.locked():
        found = fit_baseline(run, name, steps)
        splits = [split for split in ("val", "test") if (run.split["split"] == split).any()]
        for split in splits:
            predict_baseline(run, name, split)
    done = f"{found.record['title']}: validation log-loss {found.record['val_log_loss']:.4f}"
    say_next(
        f"{done}, {found.record['seconds']:.0f} s", f"scorebayes evaluate {run_dir} --split {splits[-1]}"
    )


def recalibrate(
    run_dir: RunDir,
    data: Annotated[str, typer.Option(help=f"Labelled images from that site, KIND[:PATH]: {SOURCES}.")],
    new_dir: Annotated[Path, typer.Option("--out", help="Run directory to create.")],
    prior: Annotated[
        str,
        typer.Option(
            help="Class prior at that site, as in predict. Default: the class shares of these images."
        ),
    ] = "",
    device: Device = "auto",
) -> None:
    """Make a run for another site: same weights, but calibration and threshold fitted on labelled images from there.

    Example: scorebayes recalibrate runs/breast --data folder:here --out runs/breast-here
    """
    from scorebayes.stages.predict import read_prior
    from scorebayes.stages.recalibrate import recalibrate as fit

    run = open_run_dir(run_dir, device)
    found = fit(run, data, new_dir, read_prior(prior, run) if prior else None)
    show_table({"before": found.before, "recalibrated (cross-validated)": found.after})
    if found.before["declined"] is not None:
        shares = f"{found.before['declined']:.1%} before, {found.after['declined']:.1%} recalibrated"
        typer.echo(f"of these images declined as atypical: {shares} (cross-validated)")
    say_next(f"written: {new_dir}", f"scorebayes predict {new_dir} FILES --out predictions.csv")
