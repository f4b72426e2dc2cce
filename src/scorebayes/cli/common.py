"""What the commands share: their options, and tables of figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scorebayes.cli.face import aligned

if TYPE_CHECKING:
    from scorebayes.runs.run import Run

RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory made by 'scorebayes train'.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Split = Annotated[str, typer.Option(help="train, val or test.")]
Estimator = Annotated[
    str,
    typer.Option(
        help="denoising, bound, flow or paper. Default: the estimator of the run. Others write separate files."
    ),
]
DataOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="Option of the data set, such as bits=12. Can be given more than once.",
    ),
]
SOURCES = (
    "phantom, medmnist:FILE.npz, folder:DIR, arrays:FILE.npz, ddsm64:PATH, cbis-ddsm:ROOT, inbreast:ROOT or "
    "vindr-mammo:ROOT"
)

RESULTS = Path("benchmarks/results")
"""Where benchmarks write."""
MASK_SOURCES = "phantom, busi:DIR, folder:DIR with images/ and masks/, or arrays:FILE.npz"


def is_mask_run(run_dir: Path) -> bool:
    """Whether the run is of segmentation."""
    from scorebayes.segmentation.run import is_mask_run

    return is_mask_run(run_dir)


def open_run_dir(run_dir: Path, device: str) -> Run:
    from scorebayes.runs.run import open_run

    return open_run(run_dir, device)


def number(value: Any, digits: int = 3) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def within(bounds: Any) -> str:
    """An interval, or a dash where there is none."""
    return f"[{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "-"


def models_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Metrics of models by title, in 80 columns. More intervals are in the files and the report."""
    names = ("accuracy", "balanced_accuracy", "log_loss", "ece")
    rows: list[tuple[str, ...]] = [("", "AUC", "95 % interval", "accuracy", "balanced", "log loss", "ECE")]
    for title, of in models.items():
        others = (number(of.get(name)) for name in names)
        rows.append((title, number(of.get("auc")), within(of.get("auc_ci95")), *others))
    return (
        f"{aligned(rows)}\naccuracy and balanced accuracy: of the most probable class, not at the threshold"
    )


def metrics_words(metrics: Mapping[str, Any]) -> str:
    """The metrics of a split, and what they cost."""
    table = models_table({"ScoreBayes": metrics, **metrics["baselines"]})
    cost = f"{metrics['nfe_per_image']:.0f} network evaluations and {metrics['seconds_per_image']:.3f} s per image"
    majority = number(metrics.get("majority_accuracy"))
    return f"{table}\nalways naming the most frequent class: accuracy {majority}; {cost}"


def shift_warnings(run_dir: Path, metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the images of a split look different from the training images."""
    from scorebayes.errors import command

    remedy = command("recalibrate", run_dir, "--data", "KIND:PATH", "--out", "NEW")
    return tuple(
        f"images of class {name!r} look different from the training images (AUC {found['auc']:.2f}). Calibration and "
        f"threshold may not hold on this split. `{remedy}` fits them on labelled images."
        for name, found in metrics["shift"].items()
        if found["noticed"]
    )
