"""What the commands share: their options, and how they print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from scorebayes.runs.run import Run

out = Console()

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


def open_run_dir(run_dir: Path, device: str) -> Run:
    from scorebayes.runs.run import open_run

    return open_run(run_dir, device)


def show_table(models: dict[str, dict[str, Any]]) -> None:
    """Metrics of models by title, in 80 columns. More intervals are in the files and the report."""
    told = "accuracy and balanced accuracy: of the most probable class, not at the threshold"
    table = Table("", box=SIMPLE_HEAD, pad_edge=False, caption=told, caption_justify="left")
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


def show_metrics(metrics: dict[str, Any]) -> None:
    show_table({"ScoreBayes": metrics, **metrics["baselines"]})
    cost = f"{metrics['nfe_per_image']:.0f} network evaluations and {metrics['seconds_per_image']:.3f} s per image"
    out.print(f"always naming the most frequent class: accuracy {metrics['majority_accuracy']:.3f}; {cost}")
    for name, found in metrics["shift"].items():
        if found["noticed"]:
            typer.echo(
                f"warning: images of class {name!r} look different from the training images (AUC {found['auc']:.2f}). "
                "Calibration and threshold may not hold on this split. 'scorebayes recalibrate' fits them on labelled "
                "images.",
                err=True,
            )


def say_next(done: str, command: str) -> None:
    out.print(f"{done}\nnext: {command}", soft_wrap=True, highlight=False)
