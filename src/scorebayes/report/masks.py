"""The report of a segmentation run: one HTML file that needs no network, and its numbers as JSON. It reads files only."""

from __future__ import annotations

import base64
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from scorebayes.errors import ConfigError, DataError, command
from scorebayes.storage import sealed
from scorebayes.storage.atomic import write_atomically

SPLITS = ("test", "val")
CASES = ("best", "median", "worst")
ROWS = (
    ("dice", "Dice"),
    ("iou", "IoU"),
    ("hd95", "95 % Hausdorff distance (pixels)"),
    ("asd", "average surface distance (pixels)"),
    ("dice_with_empty", "Dice with empty images"),
    ("missed", "objects missed entirely"),
    ("empty_found_empty", "empty images found empty"),
    ("pixel_ece", "calibration error of the pixels"),
    ("pixel_log_loss", "log-loss of the pixels (nats)"),
    ("coverage", "areas inside their 95 % interval"),
    ("area_interval_width", "mean width of the area's interval (pixels)"),
    ("seconds_per_image", "seconds per image"),
)
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("scorebayes.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_mask_report(run_dir: Path) -> Path:
    """Write ``report.html`` and ``report.json`` into a segmentation run; returns the first. ConfigError where no split is
    evaluated yet, DataError where a file is damaged."""
    metrics = {
        split: _read(run_dir / f"metrics-{split}.json")
        for split in SPLITS
        if (run_dir / f"metrics-{split}.json").exists()
    }
    if not metrics:
        raise ConfigError(
            f"{run_dir}: no split is evaluated yet.",
            f"Run `{command('score', run_dir, '--split', 'test')}`, then evaluate.",
        )
    source = _read(run_dir / "source.json")
    sections = [
        {
            "split": split,
            "metrics": of,
            "rows": [(title, _said(of.get(name)), _within(of.get(f"{name}_ci95"))) for name, title in ROWS],
            "cases": [
                (name, of["cases"][name], _picture(run_dir, split, name))
                for name in CASES
                if name in of["cases"]
            ],
        }
        for split, of in metrics.items()
    ]
    page = _TEMPLATES.get_template("mask-report.html.j2").render(
        title=source["title"], synthetic=source["synthetic"], sections=sections, version=version("scorebayes")
    )
    write_atomically(run_dir / "report.html", page)
    numbers = {
        "scorebayes": version("scorebayes"),
        "task": "segment",
        "data": source["title"],
        "splits": metrics,
    }
    write_atomically(run_dir / "report.json", json.dumps(numbers, indent=1) + "\n")
    return run_dir / "report.html"


def _read(path: Path) -> dict[str, Any]:
    try:
        return sealed.read_json(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing.", "Make it again.") from error


def _said(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _within(bounds: list[float] | None) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""


def _picture(run_dir: Path, split: str, name: str) -> str:
    """As a data URL."""
    content = (run_dir / f"overlays-{split}" / f"{name}.png").read_bytes()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
