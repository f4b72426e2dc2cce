"""The stages in their order: what the commands, the demonstration and the benchmarks call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scorebayes import evaluate, inputs
from scorebayes import train as training
from scorebayes.config import resolve
from scorebayes.report import write_report
from scorebayes.run import Run, open_run, pick_device
from scorebayes.scoring import score_split

DEMO_STEPS = 600
DEMO_MINUTES = 3.0


def train(
    path: Path,
    data: str,
    layers: Sequence[Mapping[str, Any]],
    preset: str,
    device: torch.device,
    *,
    resume: bool = False,
) -> Run:
    """From a data source to a trained and calibrated run directory."""
    if resume and (path / "config.toml").exists():
        run = open_run(path, str(device))
        stored = {"prepare": run.config.sections["prepare"]}
        training.require_same(
            run.config, resolve(*layers, {"data": {"source": data}}, preset=preset, defaults=stored)
        )
        images = {name: inputs.load_split(run, name) for name in ("train", "val")}
    else:
        run, images = inputs.start_run(path, data, layers, preset, device)
    with run.locked():
        training.fit(run, images["train"], images["val"])
        score_split(run, "val")
        evaluate.calibrate(run)
    return run


def demo(path: Path, data: str) -> tuple[dict[str, Any], Path]:
    """Train, score, evaluate and report within a few minutes; goes on where it was stopped. Returns metrics and report."""
    layers = [{"train": {"steps": DEMO_STEPS, "minutes": DEMO_MINUTES}}]
    run = train(path, data, layers, "tiny", pick_device(), resume=path.exists())
    split = "test" if (run.split["split"] == "test").any() else "val"
    score_split(run, split)
    metrics = evaluate.evaluate(run, split)
    return metrics, write_report(path)
