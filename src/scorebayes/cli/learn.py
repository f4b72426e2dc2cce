"""Commands that fit something: train, tune, baseline, recalibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scorebayes.cli.common import (
    MASK_SOURCES,
    SOURCES,
    DataOptions,
    Device,
    RunDir,
    models_table,
    number,
    open_run_dir,
    within,
)
from scorebayes.cli.face import Told, aligned
from scorebayes.errors import command


def train(
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="With --resume: the run to go on with.")
    ] = None,
    data: Annotated[str, typer.Option(help=f"KIND[:PATH]: {SOURCES}. For masks: {MASK_SOURCES}.")] = "",
    task: Annotated[
        str, typer.Option(help="classify or segment. [default: classify, or that of the run]")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Run directory to create.")] = None,
    option: DataOptions = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(
            help="TOML file that overrides the preset. Can be given more than once; later files win."
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="tiny, light, small or paper. [default: small]")] = None,
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
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with RUN as its own config.toml says; no other option needed."),
    ] = False,
) -> Told:
    """Learn the class-conditional score and calibrate it on the validation split; with --task segment, masks.

    Stop it with Ctrl-C, and go on with: scorebayes train --resume RUN

    Example: scorebayes train --data medmnist:breastmnist.npz --out runs/breast --steps 3000
    """
    from scorebayes.data import parse_options
    from scorebayes.runs import inputs
    from scorebayes.runs.config import preset_layer, read_toml
    from scorebayes.runs.device import pick_device
    from scorebayes.segmentation.run import is_mask_run
    from scorebayes.stages import train as stages

    path = _where(run_dir, out, resume)
    if task not in ("", "classify", "segment"):
        raise typer.BadParameter(f"--task {task}: classify or segment")
    if encoder and from_scratch:
        raise typer.BadParameter("give --encoder or --from-scratch, not both")
    given: dict[str, dict[str, Any]] = {f"--config {file}": read_toml(file) for file in config or ()}
    for words, value, layer in (
        (f"--option {' '.join(option or [])}", option, {"data": {"options": parse_options(option or [])}}),
        (f"--size {size}", size, {"prepare": {"size": size}}),
        (f"--steps {steps}", steps, {"train": {"steps": steps}}),
        (f"--minutes {minutes}", minutes, {"train": {"minutes": minutes}}),
        ("--label-free", label_free or None, {"train": {"null_label": 1.0}}),
        (f"--init {init}", init, {"train": {"init": str(init.resolve()) if init else ""}}),
        (f"--seed {seed}", seed, {"seed": seed}),
        (f"--encoder {encoder}", encoder or None, {"evidence": {"features": {"encoder": encoder}}}),
        ("--from-scratch", from_scratch or None, {"evidence": {"sources": ["pixels", "wavelets"]}}),
    ):
        if value is not None:
            given[words] = layer
    source = inputs.absolute_source(data)
    if task == "segment" or is_mask_run(path):
        return _masks(path, source, given, preset, device, resume)
    if resume and (path / "config.toml").exists():
        before = {f"--preset {preset}": dict(preset_layer(preset))} if preset else {}
        after = {f"--data {data}": {"data": {"source": source}}} if data else {}
        run = stages.resume(path, pick_device(device), {**before, **given, **after})
    elif data:
        run = stages.train(
            path, source, list(given.values()), preset or "small", pick_device(device), resume=resume
        )
    else:
        from scorebayes.errors import ConfigError

        raise ConfigError(
            f"{path}: there is no run to go on with (config.toml is missing).",
            f"Begin it with `{command('train', '--data', 'KIND:PATH', '--out', path)}`.",
        )
    return _trained(stages.summary(run), bool((run.split["split"] == "test").any()))


CLASSES_ONLY = ("--label-free", "--init", "--encoder", "--from-scratch")


def _masks(
    path: Path, source: str, given: dict[str, dict[str, Any]], preset: str | None, device: str, resume: bool
) -> Told:
    """Segmentation, with the options that it has."""
    from scorebayes.cli import masks
    from scorebayes.errors import ConfigError

    foreign = [words for words in given if words.partition(" ")[0] in CLASSES_ONLY]
    if foreign:
        raise ConfigError(f"{foreign[0]} is for classification only.", "Leave it out for --task segment.")
    if not source and not (path / "config.toml").exists():
        raise ConfigError(
            f"{path}: there is no run to go on with (config.toml is missing).",
            f"Begin it with `{command('train', '--task', 'segment', '--data', 'KIND:PATH', '--out', path)}`.",
        )
    return masks.train(path, source, list(given.values()), preset, device, resume)


def _where(run_dir: Path | None, out: Path | None, resume: bool) -> Path:
    """The directory that is meant. BadParameter where that is not clear."""
    if run_dir is not None and not resume:
        raise typer.BadParameter(f"'{run_dir}': name a new run by --out, or add --resume to go on with one")
    if run_dir is not None and out is not None and run_dir != out:
        raise typer.BadParameter("give the run once: --resume RUN")
    path = run_dir or out
    if path is None:
        raise typer.BadParameter("give --data KIND:PATH and --out RUN, or --resume RUN")
    return path


def _trained(found: dict[str, Any], has_test: bool) -> Told:
    """What a training came to."""
    run, judged = found["run"], found.get("validation")
    rows = [("steps", _steps_words(found)), ("time", _time(found["seconds"]))]
    if judged is None:
        start = command("train", "--init", run, "--data", "KIND:PATH", "--out", "NEW")
        return Told(found, f"trained without labels: {run}\n\n{aligned(rows)}\n\nnext: {start}")
    patients = f" of {judged['n_patients']} patients" if judged["n_patients"] else ""
    rows = [
        ("validation images", f"{judged['n']}{patients}"),
        ("AUC", f"{number(judged['auc'])} {within(judged['auc_ci95'])}"),
        ("sensitivity", f"{number(judged['sensitivity'])} (of {found['positive']})"),
        ("specificity", number(judged["specificity"])),
        ("threshold", f"{number(judged['threshold'])} (probability of {found['positive']})"),
        ("log-loss", f"{number(judged['log_loss'])} (cross-fitted)"),
        *rows,
    ]
    caution = "Calibration and threshold were fitted on these images, so new images tell more."
    following = (
        command("score", run, "--split", "test") if has_test else command("evaluate", run, "--split", "val")
    )
    return Told(found, f"trained and calibrated: {run}\n\n{aligned(rows)}\n\n{caution}\nnext: {following}")


def _steps_words(found: dict[str, Any]) -> str:
    if not found["stopped_by_minutes"]:
        return str(found["steps"])
    minutes = found["minutes_asked"]
    return (
        f"stopped after {minutes:g} minute{'s' * (minutes != 1)} at step {found['steps']} of {found['steps_asked']}, as "
        "--minutes asked"
    )


def _time(seconds: float) -> str:
    from scorebayes.progress import clock

    return clock(seconds) if seconds == seconds else "-"


def go_on(arguments: dict[str, Any]) -> str:
    """What somebody can do who stopped a training."""
    path = arguments["run_dir"] or arguments["out"]
    if path is not None and (path / "config.toml").exists():
        return f"resume with: {command('train', '--resume', path)}"
    kept = path is not None and (path / "cache").exists()
    return "run the same command again; prepared images are kept" if kept else ""


def tune(run_dir: RunDir, device: Device = "auto") -> Told:
    """Choose the noise levels on the validation split, and keep them if they lower the validation log-loss.

    Example: scorebayes tune runs/breast
    """
    from scorebayes.stages.tune import tune

    run = open_run_dir(run_dir, device)
    with run.locked():
        found = tune(run)
    rows = [
        (name, f"log-SNR {mean:.2f} +- {std:.2f}", f"validation log-loss {loss:.4f}")
        for name, (mean, std), loss in (
            ("before", found.before, found.log_loss_before),
            ("fitted", found.fitted, found.log_loss_fitted),
        )
    ]
    done = (
        "the fitted noise levels are used from now on" if found.better else "the noise levels are unchanged"
    )
    facts = {
        "run": run_dir,
        "used": found.better,
        "before": {"log_snr": found.before, "val_log_loss": found.log_loss_before},
        "fitted": {"log_snr": found.fitted, "val_log_loss": found.log_loss_fitted},
    }
    return Told(facts, f"{aligned(rows)}\n{done}\nnext: {command('score', run_dir, '--split', 'test')}")


def baseline(
    run_dir: RunDir,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="logistic, hog-svm, resnet18, resnet50, densenet121, efficientnet-b0, vit, logistic-on-features, "
            "logistic-on-statistics, fine-tuned or fine-tuned-last-block.",
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
) -> Told:
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
    record = found.record
    done = f"{record['title']}: validation log-loss {record['val_log_loss']:.4f}, {record['seconds']:.0f} s"
    following = command("evaluate", run_dir, "--split", splits[-1])
    return Told({"run": run_dir, "name": name, **record}, f"{done}\nnext: {following}")


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
) -> Told:
    """Make a run for another site: same weights, but calibration and threshold fitted on labelled images from there.

    Example: scorebayes recalibrate runs/breast --data folder:here --out runs/breast-here
    """
    from scorebayes.stages.predict import read_prior
    from scorebayes.stages.recalibrate import recalibrate as fit

    run = open_run_dir(run_dir, device)
    found = fit(run, data, new_dir, read_prior(prior, run) if prior else None)
    table = models_table({"before": found.before, "recalibrated (cross-validated)": found.after})
    if found.before["declined"] is not None:
        shares = f"{found.before['declined']:.1%} before, {found.after['declined']:.1%} recalibrated"
        table += f"\nof these images declined as atypical: {shares} (cross-validated)"
    following = command("predict", new_dir, "FILES", "--out", "predictions.csv")
    facts = {
        "run": new_dir, "from": run_dir, "before": found.before, "after": found.after,
        "threshold": found.run.decision.threshold,
    }  # fmt: skip
    return Told(facts, f"{table}\nwritten: {new_dir}\nnext: {following}")
