"""The demonstration of segmentation: train, score, evaluate and report in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scorebayes.data.split import judged_split
from scorebayes.report.masks import write_mask_report
from scorebayes.segmentation.stages import evaluate_masks, score_masks, train_masks

DEMO_STEPS = 400
DEMO_MINUTES = 2.5


def mask_demo(path: Path, data: str, device: torch.device) -> tuple[dict[str, Any], Path]:
    """Train, score, evaluate and report within a few minutes; resumes where it was stopped. Returns metrics and report."""
    layers = [{"train": {"steps": DEMO_STEPS, "minutes": DEMO_MINUTES}}]
    run = train_masks(path, data, layers, "tiny", device, resume=path.exists())
    split = judged_split(run.split["split"])
    score_masks(run, split)
    metrics = evaluate_masks(run, split)
    return metrics, write_mask_report(path)
