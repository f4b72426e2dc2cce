"""The demonstration: train, score, evaluate and report in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scorebayes.data.split import judged_split
from scorebayes.report import write_report
from scorebayes.stages.evaluate import evaluate
from scorebayes.stages.score import score_split
from scorebayes.stages.train import train

DEMO_STEPS = 600
DEMO_MINUTES = 2.5


def demo(path: Path, data: str, device: torch.device) -> tuple[dict[str, Any], Path]:
    """Train, score, evaluate and report within a few minutes; resumes where it was stopped. Returns metrics and report."""
    layers = [{"train": {"steps": DEMO_STEPS, "minutes": DEMO_MINUTES}}]
    run = train(path, data, layers, "tiny", device, resume=path.exists())
    split = judged_split(run.split["split"])
    score_split(run, split)
    metrics = evaluate(run, split)
    return metrics, write_report(path)
