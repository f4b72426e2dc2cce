"""The commands of a run whose task is segmentation; ``learn`` and ``answer`` hand over to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scorebayes.cli.common import number, within
from scorebayes.cli.face import DONE, SOME_UNANSWERED, Told, aligned
from scorebayes.errors import command

ROWS = (
    ("dice", "Dice"),
    ("iou", "IoU"),
    ("hd95", "HD95"),
    ("asd", "surface distance"),
    ("pixel_ece", "ECE of pixels"),
    ("coverage", "coverage of area"),
)


def train(
    path: Path,
    source: str,
    layers: Sequence[Mapping[str, Any]],
    preset: str | None,
    device: str,
    resume: bool,
) -> Told:
    """Learn the posterior over masks."""
    from scorebayes.data.split import judged_split
    from scorebayes.runs.device import pick_device
    from scorebayes.segmentation.stages import resume_masks, train_masks

    where = pick_device(device)
    if resume and (path / "config.toml").exists():
        asked = [*layers, {"data": {"source": source}}] if source else list(layers)
        run = resume_masks(path, where, asked)
    else:
        run = train_masks(path, source, layers, preset or "small", where, resume=resume)
    decision, entries = run.decision, run.checkpoints.entries("state")
    steps, seconds = entries[-1]["step"], entries[-1]["seconds"]
    rows = [
        ("steps", str(steps)),
        ("time", f"{seconds:.0f} s"),
        ("threshold", number(decision.threshold)),
        ("weights", f"samples {decision.samples:.2f}, first guess {decision.guess:.2f}"),
    ]
    following = command("score", path, "--split", judged_split(run.split["split"]))
    facts = {"run": path, "task": "segment", "steps": steps, "seconds": seconds, **decision.to_dict()}
    return Told(facts, f"trained and calibrated: {path}\n\n{aligned(rows)}\n\nnext: {following}")


def score(run_dir: Path, split: str, device: str) -> Told:
    """Draw masks for a split."""
    from scorebayes.segmentation.run import open_mask_run
    from scorebayes.segmentation.stages import score_masks

    run = open_mask_run(run_dir, device)
    with run.locked():
        drawn = score_masks(run, split)
    seconds, path = float(drawn.seconds.mean()), run_dir / f"masks-{split}.npz"
    facts = {
        "run": run_dir,
        "split": split,
        "written": path,
        "images": len(drawn),
        "seconds_per_image": seconds,
    }
    following = command("evaluate", run_dir, "--split", split)
    return Told(facts, f"{len(drawn)} images, {seconds:.3f} s each\nmasks: {path}\nnext: {following}")


def evaluate(run_dir: Path, split: str) -> Told:
    """Judge a scored split."""
    from scorebayes.segmentation.run import open_mask_run
    from scorebayes.segmentation.stages import evaluate_masks

    metrics = evaluate_masks(open_mask_run(run_dir, "cpu"), split)
    written = run_dir / f"metrics-{split}.json"
    words = f"{metrics_words(metrics)}\nmetrics: {written}\nnext: {command('report', run_dir)}"
    return Told({"run": run_dir, "written": written, **metrics}, words)


def metrics_words(metrics: Mapping[str, Any]) -> str:
    """The metrics of a split, and what they cost."""
    rows = [(title, number(metrics[name]), within(metrics.get(f"{name}_ci95"))) for name, title in ROWS]
    return (
        f"{metrics['images']} images, {metrics['with_object']} with an object\n{aligned(rows)}\n"
        f"{metrics['samples']} masks an image by {metrics['evaluations']} evaluations each, "
        f"{metrics['seconds_per_image']:.3f} s per image"
    )


def predict(run_dir: Path, files: Sequence[Path], out: Path | None, device: str) -> Told:
    """Masks for files."""
    from scorebayes.errors import ConfigError
    from scorebayes.segmentation.run import open_mask_run
    from scorebayes.segmentation.stages import predict_masks

    if out is not None and (str(out) == "-" or out.is_file()):
        raise ConfigError(f"--out {out} is no folder.", "Name a folder for the masks.")
    frame, answers = predict_masks(open_mask_run(run_dir, device), files, out)
    unanswered = int((frame["status"] != "ok").sum())
    told = f"{len(frame) - unanswered} of {len(frame)} files segmented"
    words = f"{told}: {out}" if out is not None else "\n".join([*(str(a) for a in answers), "", told])
    warnings = tuple(f"{a.image}: {a.reason}" for a in answers if a.reason) if out is not None else ()
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    facts = {
        "run": run_dir,
        "written": out,
        "files": len(frame),
        "segmented": len(frame) - unanswered,
        "answers": rows,
    }
    return Told(facts, words, warnings, SOME_UNANSWERED if unanswered else DONE)


def report(run_dir: Path) -> Told:
    """Write report.html and report.json."""
    from scorebayes.report.masks import write_mask_report

    path = write_mask_report(run_dir)
    return Told({"run": run_dir, "written": [path, path.with_suffix(".json")]}, f"report: {path}")


def demo(run_dir: Path, source: str, device: str) -> Told:
    """Train, score, evaluate and report; resumes where it was stopped."""
    from scorebayes.runs.device import pick_device
    from scorebayes.segmentation.demo import mask_demo

    metrics, path = mask_demo(run_dir, source, pick_device(device))
    words = f"{metrics_words(metrics)}\nDice on the {metrics['split']} split: {number(metrics['dice'])}\nreport: {path}"
    return Told({"run": run_dir, "report": path, **metrics}, words)
